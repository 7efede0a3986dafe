/* A lean WebSocket load client: N connections in one epoll thread, hello messages on each; then a publisher (TCP lines,
   or WebSocket messages on a connection of its own) sends M messages with at most W outstanding; the frames are counted.

     cc -O2 -o load load.c
     load HOST PORT PATH N M W hello1 [hello2 ...] -- tcp:PUSH_PORT 'line with %T' | ws 'message with %T'

   In a hello %d is the connection's number, %u its user, number % USERS, and %g its group, number / PER; in the
   publisher's template %g is some group. A publisher on a WebSocket says no hello: it is in no group.
   %T is CLOCK_MONOTONIC in ns, read back from the frames behind "ts": for the latency.
   Environment: USERS (how many people the connections are of; 0 for one each), PER (each message goes to one group of
   PER connections, not to all N), MATCH (only frames that contain it count), HELLO_PAUSE (seconds after each hello,
   0.3), HELLOS (a file: its line i has the hellos of connection i, separated by tabs, in place of those above), GROUPS
   (how many groups there are, if not N / PER), SETTLE (seconds after the last, 1), DEFLATE (offer permessage-deflate; compressed frames count whatever they
   contain), RATE (messages/s, 0 = as the window allows), SPIN (do not sleep while messages are under way: to wake the
   client would be accounted to the server, whose browsers are on other machines), GATE (say {"ready":N}; then each line
   on stdin is the number of messages to publish, and is answered with what was seen of them, until stdin ends). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
typedef struct {
  int fd, open;
  unsigned len, cap;
  char *buf;
} Conn;
static Conn *cs;
static int ep, N, M, W, per = 3, users, deflated, spin;
static const char *match;
static long frames, opened, errors, bytes;
static uint64_t hist[64 * 16];
static uint64_t maxlat, busy;
static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static void lat(uint64_t ns) {
  if (ns > maxlat) maxlat = ns;
  int b = 63 - __builtin_clzll(ns | 1);
  int s = b >= 4 ? (ns >> (b - 4)) & 15 : 0;
  hist[b * 16 + s]++;
}
static double pct(double p) {
  uint64_t tot = 0, c = 0;
  for (int i = 0; i < 1024; i++)
    tot += hist[i];
  for (int i = 0; i < 1024; i++) {
    c += hist[i];
    if (tot && c >= p * tot) {
      int b = i / 16, s = i % 16;
      return (double)((1ull << b) + ((uint64_t)s << (b >= 4 ? b - 4 : 0))) / 1e6;
    }
  }
  return 0;
}
static void die(const char *m) {
  perror(m);
  exit(2);
}
static int dial(const char *h, int port, int i) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  if (fd < 0) die("socket");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (i >= 20000) {
    struct sockaddr_in s = {.sin_family = AF_INET};
    char ip[32];
    snprintf(ip, 32, "127.0.0.%d", 2 + i / 20000);
    inet_pton(AF_INET, ip, &s.sin_addr);
    setsockopt(fd, IPPROTO_IP, 24, &one, sizeof one);
    bind(fd, (void *)&s, sizeof s);
  }
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, h, &a.sin_addr);
  if (connect(fd, (void *)&a, sizeof a)) {
    errors++;
    close(fd);
    return -1;
  }
  return fd;
}
static void wsend(int fd, const char *t) {
  size_t n = strlen(t);
  unsigned char b[65536];
  int h = 2;
  b[0] = 0x81;
  if (n < 126)
    b[1] = 0x80 | n;
  else {
    b[1] = 0x80 | 126;
    b[2] = n >> 8;
    b[3] = n;
    h = 4;
  }
  memset(b + h, 0, 4);
  memcpy(b + h + 4, t, n);
  if (write(fd, b, h + 4 + n) < 0) errors++;
}
static void onframe(Conn *c, int head, char *p, unsigned n) {
  int op = head & 15;
  if (op == 9) {
    unsigned char b[6 + 125] = {0x8A, 0x80 | n};
    memcpy(b + 6, p, n);
    if (write(c->fd, b, 6 + n) < 0) errors++;
    return;
  }
  if (op != 1 && op != 2) return;
  if (n == 1 && p[0] == '2') {
    wsend(c->fd, "3");
    return;
  }
  if (match && !(head & 0x40) && !memmem(p, n, match, strlen(match))) return;
  frames++;
  bytes += n;
  char *t = memmem(p, n, "\"ts\":", 5);
  if (t) {
    uint64_t v = strtoull(t + 5, 0, 10), w = now();
    if (v && w > v) lat(w - v);
  }
}
static void feed(Conn *c) {
  for (;;) {
    if (c->cap - c->len < 16384) {
      c->cap = c->cap ? c->cap * 2 : 32768;
      c->buf = realloc(c->buf, c->cap + 1);
    }
    ssize_t r = recv(c->fd, c->buf + c->len, c->cap - c->len, MSG_DONTWAIT);
    if (r == 0 || (r < 0 && errno != EAGAIN)) {
      errors++;
      epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, 0);
      return;
    }
    if (r < 0) break;
    c->len += r;
    c->buf[c->len] = 0;
    unsigned o = 0;
    if (!c->open) {
      char *e = memmem(c->buf, c->len, "\r\n\r\n", 4);
      if (!e) continue;
      if (!memmem(c->buf, 20, " 101", 4)) {
        fprintf(stderr, "%.200s\n", c->buf);
        exit(3);
      }
      c->open = 1;
      opened++;
      o = e + 4 - c->buf;
    }
    while (c->len - o >= 2) {
      unsigned char *b = (void *)(c->buf + o);
      unsigned h = 2, n = b[1] & 127;
      if (n == 126) {
        if (c->len - o < 4) break;
        n = b[2] << 8 | b[3];
        h = 4;
      } else if (n == 127) {
        if (c->len - o < 10) break;
        n = 0;
        for (int k = 2; k < 10; k++)
          n = n << 8 | b[k];
        h = 10;
      }
      if (c->len - o < h + n) break;
      onframe(c, b[0], c->buf + o + h, n);
      o += h + n;
    }
    memmove(c->buf, c->buf + o, c->len - o);
    c->len -= o;
    if (r < 16384) break;
  }
  if (c->len == 0 && c->cap) {
    free(c->buf);
    c->buf = 0;
    c->cap = 0;
  }
}
/* Whether stdin has input. */
static int pump(int ms) {
  struct epoll_event ev[512];
  int n = epoll_wait(ep, ev, 512, ms), told = 0;
  uint64_t began = now();
  for (int i = 0; i < n; i++)
    if (ev[i].data.ptr)
      feed(ev[i].data.ptr);
    else
      told = 1;
  busy += now() - began;
  return told;
}
static void fill(char *out, const char *t, int i, uint64_t ts) {
  for (; *t; t++) {
    if (t[0] == '%' && t[1] == 'd') {
      out += sprintf(out, "%d", i);
      t++;
    } else if (t[0] == '%' && t[1] == 'u') {
      out += sprintf(out, "%d", users ? i % users : i);
      t++;
    } else if (t[0] == '%' && t[1] == 'T') {
      out += sprintf(out, "%llu", (unsigned long long)ts);
      t++;
    } else if (t[0] == '%' && t[1] == 'g') {
      out += sprintf(out, "%d", i / per);
      t++;
    } else
      *out++ = *t;
  }
  *out = 0;
}
/* Publish m messages, and print the results. */
static void publish(int m, int pfd, const char *tmpl, double rate) {
  static char line[65536];
  int sparse = !!getenv("PER"), groups = sparse ? N / per * per : 1;
  if (getenv("GROUPS")) groups = atoi(getenv("GROUPS")) * per;
  static long next;
  frames = bytes = 0;
  memset(hist, 0, sizeof hist);
  maxlat = 0;
  busy = 0;
  uint64_t t1 = now(), last = t1;
  long sent = 0, seen = 0, each = sparse ? per : N, wanted = each * m;
  while (frames < wanted) {
    while (sent < m && frames >= (sent - W + 1) * each && (rate == 0 || now() - t1 >= sent / rate * 1e9)) {
      fill(line, tmpl, sparse ? next++ * 7919 % groups : 0, now());
      if (pfd >= 0) {
        strcat(line, "\n");
        if (write(pfd, line, strlen(line)) < 0) errors++;
        char d[4096];
        recv(pfd, d, sizeof d, MSG_DONTWAIT);
      } else
        wsend(cs[N].fd, line);
      sent++;
    }
    pump(spin ? 0 : rate ? 1 : 10);
    if (frames != seen) {
      seen = frames;
      last = now();
    }
    if (now() - last > 20e9) break;
  }
  uint64_t t2 = now();
  printf("{\"m\":%d,\"frames\":%ld,\"bytes\":%ld,\"lost\":%ld,\"errors\":%ld,\"wall_s\":%.3f,\"per_s\":%.0f,"
         "\"client_us_per_frame\":%.2f,\"p50_ms\":%.2f,\"p90_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f}\n",
         m, frames, bytes, wanted - frames, errors, (t2 - t1) / 1e9, frames / ((t2 - t1) / 1e9),
         frames ? busy / 1e3 / frames : 0, pct(.5), pct(.9), pct(.99), maxlat / 1e6);
  fflush(stdout);
}
int main(int ac, char **av) {
  struct rlimit rl = {1000000, 1000000};
  setrlimit(RLIMIT_NOFILE, &rl);
  const char *host = av[1], *path = av[3];
  int port = atoi(av[2]);
  N = atoi(av[4]);
  M = atoi(av[5]);
  W = atoi(av[6]);
  int a = 7, h0 = 7;
  while (a < ac && strcmp(av[a], "--"))
    a++;
  int h1 = a;
  const char *pub = a + 1 < ac ? av[a + 1] : "none", *tmpl = a + 2 < ac ? av[a + 2] : "";
  if (getenv("PER")) per = atoi(getenv("PER"));
  if (getenv("USERS")) users = atoi(getenv("USERS"));
  signal(SIGPIPE, SIG_IGN);
  match = getenv("MATCH");
  deflated = !!getenv("DEFLATE");
  spin = !!getenv("SPIN");
  double rate = getenv("RATE") ? atof(getenv("RATE")) : 0, settle = getenv("SETTLE") ? atof(getenv("SETTLE")) : 1.0,
         pause = getenv("HELLO_PAUSE") ? atof(getenv("HELLO_PAUSE")) : 0.3;
  ep = epoll_create1(0);
  int total = N + (pub[0] == 'w');
  cs = calloc(total, sizeof *cs);
  uint64_t t0 = now();
  char m[65536];
  for (int i = 0; i < total; i++) {
    Conn *c = &cs[i];
    c->fd = dial(host, port, i);
    if (c->fd < 0) continue;
    int n = sprintf(m,
                    "GET %s HTTP/1.1\r\nHost: %s:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: "
                    "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n%s\r\n",
                    path, host, port, deflated ? "Sec-WebSocket-Extensions: permessage-deflate\r\n" : "");
    if (write(c->fd, m, n) != n) errors++;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
    while (opened < i - 64 && now() - t0 < 120e9)
      pump(10);
  }
  while (opened < total && errors == 0 && now() - t0 < 120e9)
    pump(10);
  for (int k = h0; k < h1; k++) {
    for (int i = 0; i < N; i++) {
      fill(m, av[k], i, 0);
      wsend(cs[i].fd, m);
      if (i % 64 == 63) pump(0);
    }
    uint64_t tk = now();
    while (now() - tk < pause * 1e9)
      pump(20);
  }
  FILE *hellos = getenv("HELLOS") ? fopen(getenv("HELLOS"), "r") : 0;
  for (int i = 0; hellos && i < N && fgets(m, sizeof m, hellos); i++) {
    m[strcspn(m, "\n")] = 0;
    for (char *hello = strtok(m, "\t"); hello; hello = strtok(0, "\t"))
      wsend(cs[i].fd, hello);
    if (i % 64 == 63) pump(0);
  }
  uint64_t tc = now();
  while (now() - tc < settle * 1e9)
    pump(20);
  fprintf(stderr, "READY opened=%ld errors=%ld\n", opened, errors);
  printf("{\"ready\":%ld}\n", opened);
  fflush(stdout);
  int pfd = -1;
  if (pub[0] == 't') {
    pfd = dial("127.0.0.1", atoi(pub + 4), 0);
    if (pfd < 0) die("push");
  }
  if (!getenv("GATE")) {
    publish(M, pfd, tmpl, rate);
    return 0;
  }
  struct epoll_event e = {.events = EPOLLIN};
  epoll_ctl(ep, EPOLL_CTL_ADD, 0, &e);
  char order[64];
  for (;;) {
    while (!pump(1000))
      ;
    ssize_t n = read(0, order, sizeof order - 1);
    if (n <= 0) return 0;
    order[n] = 0;
    publish(atoi(order), pfd, tmpl, rate);
  }
}
