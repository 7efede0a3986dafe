/* Mass disconnects and reconnects, and a bystander who must not be delayed.

     cc -O2 -pthread -o storm storm.c
     storm PORT PUSH_PORT N RECOVER USERS

   N connections (of USERS people, twenty to a conversation) come, go all at once, and come back all at once, each
   recovering RECOVER events of its conversation. Meanwhile, in a thread of its own, a bystander is sent an event by a
   backend every 20 ms and notes how long each took. One line of JSON for each phase:
     calm        everybody is there and nothing happens
     disconnect  N sockets are closed in one go; then what is left of 10 s
     reconnect   N connect() in one go, until the last has all its events (or 60 s); 3 s more
   "histogram": events by delay, in the classes of `bounds`. "late_ms": how late the bystander's own clock ticked, which
   is not the server's fault. "client_cpu": the share of its core that this program used. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { TICK = 20000000, CLASSES = 10, BYSTANDER = 9000000 };
static const double bounds[CLASSES] = {1, 2, 5, 10, 20, 50, 100, 250, 1000, 1e9};

typedef struct {
  int fd, opened;
  unsigned length, events;
  char *rest;
} Conn;
static Conn *conns;
static int loop, N, port, push_port, users, want;
static long opened, complete, refused, subscribed;
static const char *last_id = "";

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long histogram[CLASSES], seen, pushed;
static double worst, late, delays[200000];
static char newest[128]; /* the id of the bystander's newest event */
static volatile int over;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static void die(const char *what) {
  perror(what);
  exit(2);
}
static int dial(int to, int type) {
  int fd = socket(AF_INET, SOCK_STREAM | type, 0), one = 1;
  if (fd < 0) die("socket");
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(to)};
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  if (connect(fd, (void *)&a, sizeof a) && errno != EINPROGRESS) die("connect");
  return fd;
}
static size_t frame(char *out, const char *text) {
  size_t n = strlen(text), h = 6;
  out[0] = (char)0x81;
  if (n < 126) {
    out[1] = (char)(0x80 | n);
  } else {
    out[1] = (char)(0x80 | 126);
    out[2] = (char)(n >> 8);
    out[3] = (char)n;
    h = 8;
  }
  memset(out + h - 4, 0, 4);
  memcpy(out + h, text, n);
  return h + n;
}
static size_t upgrade(char *out) {
  return sprintf(out,
                 "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                 port);
}
static size_t hello(char *out, long user, long conversation, const char *id) {
  char text[512], recover[160] = "";
  if (*id) snprintf(recover, sizeof recover, ",\"last_event_id\":\"%s\"", id);
  snprintf(text, sizeof text, "{\"type\":\"auth\",\"user_id\":%ld%s}", user, recover);
  size_t n = frame(out, text);
  snprintf(text, sizeof text, "{\"type\":\"subscribe\",\"conversation_id\":%ld%s}", conversation, recover);
  return n + frame(out + n, text);
}
/* Handle complete frames, answer pings, and return their total bytes. */
static size_t frames(int fd, char *data, size_t length, void (*on)(void *, char *, size_t), void *whom) {
  size_t at = 0;
  while (length - at >= 2) {
    unsigned char *b = (void *)(data + at);
    size_t n = b[1] & 127, h = 2;
    if (n == 126) {
      if (length - at < 4) break;
      n = b[2] << 8 | b[3];
      h = 4;
    } else if (n == 127) {
      if (length - at < 10) break;
      n = 0;
      for (int i = 2; i < 10; i++)
        n = n << 8 | b[i];
      h = 10;
    }
    if (length - at < h + n) break;
    if ((b[0] & 15) == 1) on(whom, data + at + h, n);
    if ((b[0] & 15) == 9) { /* an empty ping */
      if (send(fd, "\x8a\x80\0\0\0\0", 6, MSG_DONTWAIT) < 0) return at;
    }
    at += h + n;
  }
  return at;
}

/* The bystander. */
static void witness(void *unused, char *text, size_t n) {
  (void)unused;
  char *ts = memmem(text, n, "\"ts\":", 5), *id = memmem(text, n, "\"id\":\"", 6);
  if (!ts || !id) return;
  double ms = (now() - strtoull(ts + 5, 0, 10)) / 1e6;
  int class = 0;
  while (ms > bounds[class])
    class++;
  pthread_mutex_lock(&lock);
  histogram[class]++;
  if (seen < 200000) delays[seen++] = ms;
  if (ms > worst) worst = ms;
  sscanf(id + 6, "%127[^\"]", newest);
  pthread_mutex_unlock(&lock);
}
static void *bystander(void *unused) {
  (void)unused;
  static char data[1 << 20];
  char out[2048];
  int fd = dial(port, 0), push = dial(push_port, 0);
  size_t length = 0, n = upgrade(out);
  if (write(fd, out, n) < 0) die("write");
  while (!memmem(data, length, "\r\n\r\n", 4)) {
    ssize_t got = read(fd, data + length, sizeof data - length);
    if (got <= 0) die("the bystander's handshake");
    length += got;
  }
  length = 0;
  n = hello(out, BYSTANDER, BYSTANDER, "");
  if (write(fd, out, n) < 0) die("write");
  uint64_t next = now() + TICK;
  while (!over) {
    uint64_t t = now();
    if (t >= next) {
      pthread_mutex_lock(&lock);
      if ((t - next) / 1e6 > late) late = (t - next) / 1e6;
      pushed++;
      pthread_mutex_unlock(&lock);
      n = sprintf(out, "{\"event\":\"new_message\",\"data\":{\"conversation_id\":%d,\"ts\":%llu}}\n", BYSTANDER,
                  (unsigned long long)now());
      if (write(push, out, n) < 0) die("push");
      next += TICK;
      if (next < t) next = t + TICK;
      continue;
    }
    struct pollfd one = {.fd = fd, .events = POLLIN};
    struct timespec wait = {0, next - t};
    if (ppoll(&one, 1, &wait, 0) <= 0) continue;
    ssize_t got = read(fd, data + length, sizeof data - length);
    if (got <= 0) die("the bystander was dropped");
    length += got;
    size_t used = frames(fd, data, length, witness, 0);
    memmove(data, data + used, length -= used);
  }
  return 0;
}

/* The crowd. */
static void count(void *whom, char *text, size_t n) {
  Conn *c = whom;
  if (memmem(text, n < 30 ? n : 30, "\"new_message\"", 13)) {
    if (++c->events == (unsigned)want) complete++;
  } else if (memmem(text, n < 30 ? n : 30, "\"subscribed\"", 12)) {
    subscribed++;
  }
}
static void feed(Conn *c) {
  static char data[1 << 18];
  if (c->length) memcpy(data, c->rest, c->length);
  ssize_t got = recv(c->fd, data + c->length, sizeof data - c->length, MSG_DONTWAIT);
  if (got <= 0) {
    if (got < 0 && errno == EAGAIN) return;
    refused++;
    close(c->fd);
    c->fd = -1;
    return;
  }
  size_t length = c->length + got, used = 0;
  if (!c->opened) {
    char *end = memmem(data, length, "\r\n\r\n", 4);
    if (end) {
      if (!memmem(data, 16, " 101", 4)) {
        fprintf(stderr, "%.100s\n", data);
        exit(3);
      }
      c->opened = 1;
      opened++;
      used = end + 4 - data;
      char out[2048];
      long i = c - conns;
      size_t n = hello(out, i % users, i / 20, last_id);
      if (send(c->fd, out, n, 0) < 0) refused++;
    }
  }
  if (c->opened) used += frames(c->fd, data + used, length - used, count, c);
  c->length = length - used;
  c->rest = realloc(c->rest, c->length ? c->length : 1);
  memcpy(c->rest, data + used, c->length);
}
static void pump(int ms) {
  struct epoll_event events[256];
  int n = epoll_wait(loop, events, 256, ms);
  for (int i = 0; i < n; i++) {
    Conn *c = events[i].data.ptr;
    if (events[i].events & EPOLLOUT) {
      char out[512];
      if (write(c->fd, out, upgrade(out)) < 0) refused++;
      struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
      epoll_ctl(loop, EPOLL_CTL_MOD, c->fd, &e);
    } else {
      feed(c);
    }
  }
}
static void come(int i) {
  Conn *c = &conns[i];
  free(c->rest);
  memset(c, 0, sizeof *c);
  c->fd = dial(port, SOCK_NONBLOCK);
  struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
  epoll_ctl(loop, EPOLL_CTL_ADD, c->fd, &e);
}
static void rest(double seconds) {
  for (uint64_t start = now(); now() - start < seconds * 1e9;)
    pump(10);
}
static double cpu(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}

static uint64_t began;
static double cpu_began;
static void begin(void) {
  pthread_mutex_lock(&lock);
  memset(histogram, 0, sizeof histogram);
  seen = pushed = 0;
  worst = late = 0;
  pthread_mutex_unlock(&lock);
  began = now();
  cpu_began = cpu();
}
static int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}
static void end(const char *phase, double storm_s) {
  double seconds = (now() - began) / 1e9, used = cpu() - cpu_began;
  pthread_mutex_lock(&lock);
  qsort(delays, seen, sizeof *delays, by_size);
  printf("{\"phase\":\"%s\",\"connections\":%d,\"recovered\":%ld,\"refused\":%ld,\"seconds\":%.2f,\"storm_s\":%.2f,"
         "\"client_cpu\":%.2f,\"events\":%ld,\"p50_ms\":%.2f,\"p99_ms\":%.2f,\"max_ms\":%.2f,\"late_ms\":%.2f,"
         "\"bounds\":[1,2,5,10,20,50,100,250,1000],\"histogram\":[",
         phase, N, complete, refused, seconds, storm_s, used / seconds, seen, seen ? delays[seen / 2] : 0,
         seen ? delays[seen * 99 / 100] : 0, worst, late);
  for (int i = 0; i < CLASSES; i++)
    printf("%s%ld", i ? "," : "", histogram[i]);
  printf("]}\n");
  fflush(stdout);
  pthread_mutex_unlock(&lock);
}

int main(int argc, char **argv) {
  if (argc < 6) return 1;
  port = atoi(argv[1]);
  push_port = atoi(argv[2]);
  N = atoi(argv[3]);
  int recover = atoi(argv[4]);
  users = atoi(argv[5]);
  signal(SIGPIPE, SIG_IGN);
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  loop = epoll_create1(0);
  conns = calloc(N, sizeof *conns);
  pthread_t thread;
  pthread_create(&thread, 0, bystander, 0);
  for (int i = 0; i < N; i++) {
    come(i);
    while (opened < i - 64)
      pump(10);
  }
  for (uint64_t start = now(); subscribed < N && now() - start < 60e9;)
    pump(10);
  rest(6); /* who is online has been announced */

  begin();
  rest(3);
  end("calm", 0);

  begin();
  for (int i = 0; i < N; i++)
    close(conns[i].fd);
  double storm_s = (now() - began) / 1e9;
  rest(10 - storm_s);
  end("disconnect", storm_s);

  /* what they will have missed */
  char id[128], line[256];
  pthread_mutex_lock(&lock);
  strcpy(id, newest);
  pthread_mutex_unlock(&lock);
  last_id = id;
  int push = dial(push_port, 0);
  for (int k = 0; k < recover; k++)
    for (int g = 0; g * 20 < N; g++) {
      int n = sprintf(line, "{\"event\":\"new_message\",\"data\":{\"conversation_id\":%d,\"content\":\"%0*d\"}}\n", g, 150, k);
      if (write(push, line, n) != n) die("push");
    }
  rest(3);
  opened = complete = subscribed = refused = 0;
  want = recover;
  begin();
  for (int i = 0; i < N; i++)
    come(i);
  for (uint64_t start = now(); complete < N && now() - start < 60e9;)
    pump(10);
  storm_s = (now() - began) / 1e9;
  rest(3);
  end("reconnect", storm_s);
  over = 1;
  pthread_join(thread, 0);
  return 0;
}
