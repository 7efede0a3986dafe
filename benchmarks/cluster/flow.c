/* Backends that push to a cluster, and browsers that listen on its nodes, in one epoll thread.

     cc -O2 -o flow flow.c
     flow SECONDS RATE WINDOW PATH NODES hello1 [hello2 ...] -- 'line with %T and %S'

   NODES is WS_PORT:PUSH_PORT:LISTENERS:BACKENDS[,...]. In a hello %u is the listener's user, one of 100. In the line %T
   is CLOCK_MONOTONIC in ns, read back from the frames behind "ts": for the latency; %S is the event's number, from 0,
   read back behind "seq": for loss, repetition and order. Each line is to be answered by one line with "ok":true.

   RATE is lines a second over all backends, at random intervals (exponentially distributed), or 0: as many as the
   windows allow; a backend has at most WINDOW lines unanswered. After SECONDS nothing more is sent, and the end is when
   all lines are answered and every listener has every event (or when nothing has come for 5 s). Without any backend the
   listeners only stay.

   Says {"ready":LISTENERS} when all are connected, waits for a byte on stdin, and then writes one object:
     events, wall_s, per_s   lines sent; from the first one sent to the last one received anywhere
     acked, lost, repeated, errors
     reordered               a listener got two lines of one backend the wrong way round, how often
     orders                  how many different orders the listeners saw; 1: all the same
     held                    lines of a paced run that had to wait for a window
     pings                   WebSocket pings answered meanwhile
     client_cpu              the share of one core that this program used
     same, other             latency at listeners on the node that was pushed to, and on the others: n, p50, p99, max */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { ROOM = 1 << 16, MANY = 20000, MOST = 1 << 23, BATCH = 1 << 15 };
typedef struct {
  int fd, node, backend, open; /* backend: else a listener */
  long seen, outstanding;
  uint64_t order;
  long newest[64]; /* of each backend: the number of the last event */
  unsigned char *had;
  unsigned length, capacity;
  char *rest;
} Peer;
static Peer *listeners[MANY], *backends[64];
static int loop, listener_count, backend_count;
static long sent, acked, repeated, reordered, errors, held, opened, pings;
static unsigned char *sender; /* by event: the backend */
typedef struct {
  float *values;
  long count, capacity;
} Sample;
static Sample same, other;

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static void die(const char *what) {
  perror(what);
  exit(2);
}
static void note(Sample *s, uint64_t ns) {
  if (s->count == s->capacity) {
    s->capacity = s->capacity ? s->capacity * 2 : 1 << 16;
    s->values = realloc(s->values, s->capacity * sizeof *s->values);
  }
  s->values[s->count++] = ns / 1e6;
}
static int ascending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}
static void tell(const char *name, Sample *s) {
  qsort(s->values, s->count, sizeof *s->values, ascending);
  if (s->count)
    printf(",\"%s\":{\"n\":%ld,\"p50_ms\":%.3f,\"p99_ms\":%.3f,\"max_ms\":%.3f}", name, s->count,
           s->values[s->count / 2], s->values[s->count * 99 / 100], s->values[s->count - 1]);
  else
    printf(",\"%s\":null", name);
}
static Peer *dial(int port, int node, int backend) {
  Peer *p = calloc(1, sizeof *p);
  int one = 1;
  p->fd = socket(AF_INET, SOCK_STREAM, 0);
  p->node = node;
  p->backend = backend;
  if (p->fd < 0) die("socket");
  setsockopt(p->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  if (connect(p->fd, (void *)&a, sizeof a)) die("connect");
  struct epoll_event e = {.events = EPOLLIN, .data.ptr = p};
  epoll_ctl(loop, EPOLL_CTL_ADD, p->fd, &e);
  return p;
}
static void put(Peer *p, const char *bytes, size_t size) {
  while (size) {
    ssize_t n = write(p->fd, bytes, size);
    if (n <= 0) die("write");
    bytes += n;
    size -= n;
  }
}
static void say(Peer *p, const char *text) {
  unsigned char b[4096] = {0x81};
  size_t n = strlen(text), h = 2;
  if (n < 126) {
    b[1] = 0x80 | n;
  } else {
    b[1] = 0x80 | 126;
    b[2] = n >> 8;
    b[3] = n;
    h = 4;
  }
  memset(b + h, 0, 4);
  memcpy(b + h + 4, text, n);
  put(p, (char *)b, h + 4 + n);
}
static void event(Peer *p, const char *text, unsigned n) {
  char *at = memmem(text, n, "\"seq\":", 6), *ts = memmem(text, n, "\"ts\":", 5);
  if (!at || !ts || !p->had) return;
  long number = strtol(at + 6, 0, 10);
  if (number < 0 || number >= sent) {
    errors++;
    return;
  }
  if (p->had[number / 8] >> number % 8 & 1) {
    repeated++;
    return;
  }
  p->had[number / 8] |= 1 << number % 8;
  p->seen++;
  p->order = (p->order ^ (uint64_t)number) * 1099511628211ull + 1;
  int from = sender[number];
  if (p->newest[from] > number) reordered++;
  p->newest[from] = number;
  note(backends[from]->node == p->node ? &same : &other, now() - strtoull(ts + 5, 0, 10));
}
static void frames(Peer *p) {
  unsigned o = 0;
  if (!p->open) {
    char *end = memmem(p->rest, p->length, "\r\n\r\n", 4);
    if (!end) return;
    if (!memmem(p->rest, 16, " 101", 4)) {
      fprintf(stderr, "%.200s\n", p->rest);
      exit(3);
    }
    p->open = 1;
    opened++;
    o = end + 4 - p->rest;
  }
  while (p->length - o >= 2) {
    unsigned char *b = (void *)(p->rest + o);
    unsigned h = 2, n = b[1] & 127;
    if (n == 126) {
      if (p->length - o < 4) break;
      n = b[2] << 8 | b[3];
      h = 4;
    } else if (n == 127) {
      if (p->length - o < 10) break;
      n = 0;
      for (int k = 2; k < 10; k++)
        n = n << 8 | b[k];
      h = 10;
    }
    if (p->length - o < h + n) break;
    char *text = p->rest + o + h;
    if ((b[0] & 15) == 9) {
      pings++;
      char pong[131] = {(char)0x8A, (char)(0x80 | n)};
      memcpy(pong + 6, text, n);
      put(p, pong, 6 + n);
    } else if ((b[0] & 15) == 8) {
      errors++;
    } else if (n == 1 && text[0] == '2') {
      say(p, "3");
    } else {
      event(p, text, n);
    }
    o += h + n;
  }
  memmove(p->rest, p->rest + o, p->length - o);
  p->length -= o;
}
static void answers(Peer *p) {
  char *line = p->rest, *end;
  while ((end = memchr(line, '\n', p->rest + p->length - line))) {
    if (memmem(line, end - line, "\"ok\":true", 9)) {
      acked++;
    } else {
      if (!errors) fprintf(stderr, "%.*s\n", (int)(end - line), line);
      errors++;
    }
    p->outstanding--;
    line = end + 1;
  }
  p->length -= line - p->rest;
  memmove(p->rest, line, p->length);
}
static void feed(Peer *p) {
  if (p->capacity - p->length < ROOM) {
    p->capacity = p->capacity ? p->capacity * 2 : 4 * ROOM;
    p->rest = realloc(p->rest, p->capacity + 1);
  }
  ssize_t n = recv(p->fd, p->rest + p->length, p->capacity - p->length, MSG_DONTWAIT);
  if (n < 0 && errno == EAGAIN) return;
  if (n <= 0) {
    errors++;
    epoll_ctl(loop, EPOLL_CTL_DEL, p->fd, 0);
    return;
  }
  p->length += n;
  p->rest[p->length] = 0;
  p->backend ? answers(p) : frames(p);
}
static void pump(int ms) {
  struct epoll_event events[256];
  int n = epoll_wait(loop, events, 256, ms);
  for (int i = 0; i < n; i++)
    if (events[i].data.ptr) feed(events[i].data.ptr);
}
static void pump_for(double seconds) {
  uint64_t until = now() + seconds * 1e9;
  while (now() < until)
    pump(10);
}
static size_t fill(char *out, const char *t, int user, long number) {
  char *start = out;
  for (; *t; t++) {
    if (t[0] == '%' && t[1] == 'u')
      out += sprintf(out, "%d", user), t++;
    else if (t[0] == '%' && t[1] == 'S')
      out += sprintf(out, "%ld", number), t++;
    else if (t[0] == '%' && t[1] == 'T')
      out += sprintf(out, "%llu", (unsigned long long)now()), t++;
    else
      *out++ = *t;
  }
  *out = 0;
  return out - start;
}
static double cpu(void) {
  struct rusage r;
  getrusage(RUSAGE_SELF, &r);
  return r.ru_utime.tv_sec + r.ru_stime.tv_sec + (r.ru_utime.tv_usec + r.ru_stime.tv_usec) / 1e6;
}
static int finished(void) {
  if (acked + errors < sent) return 0;
  for (int i = 0; i < listener_count; i++)
    if (listeners[i]->seen < sent) return 0;
  return 1;
}
static long progress(void) {
  long all = acked + errors;
  for (int i = 0; i < listener_count; i++)
    all += listeners[i]->seen;
  return all;
}
static void send_lines(Peer *p, const char *line, int at_most, long window) {
  static char batch[BATCH + ROOM];
  size_t size = 0;
  while (at_most-- > 0 && p->outstanding < window && size < BATCH && sent < MOST) {
    sender[sent] = p->backend - 1;
    size += fill(batch + size, line, 0, sent++);
    batch[size++] = '\n';
    p->outstanding++;
  }
  put(p, batch, size);
}
int main(int argc, char **argv) {
  if (argc < 8) return fprintf(stderr, "see the head of flow.c\n"), 2;
  double seconds = atof(argv[1]), rate = atof(argv[2]);
  long window = atol(argv[3]);
  char text[ROOM];
  int dashes = 6;
  while (dashes < argc && strcmp(argv[dashes], "--"))
    dashes++;
  if (dashes + 1 >= argc) return 2;
  const char *line = argv[dashes + 1];
  signal(SIGPIPE, SIG_IGN);
  loop = epoll_create1(0);
  sender = malloc(MOST);
  int node = 0;
  for (char *one = strtok(argv[5], ","); one; one = strtok(0, ","), node++) {
    int port, push, browsers, pushers;
    if (sscanf(one, "%d:%d:%d:%d", &port, &push, &browsers, &pushers) != 4) return 2;
    for (int i = 0; i < browsers && listener_count < MANY; i++) {
      Peer *p = listeners[listener_count++] = dial(port, node, 0);
      int n = sprintf(text,
                      "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                      "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
                      argv[4], port);
      put(p, text, n);
    }
    for (int i = 0; i < pushers && backend_count < 64; i++) {
      backends[backend_count] = dial(push, node, backend_count + 1);
      backend_count++;
    }
  }
  uint64_t began = now();
  while (opened < listener_count && now() - began < 10e9)
    pump(10);
  if (opened < listener_count) die("handshake");
  for (int k = 6; k < dashes; k++) {
    for (int i = 0; i < listener_count; i++) {
      fill(text, argv[k], i % 100 + 1, 0);
      say(listeners[i], text);
    }
    pump_for(0.15);
  }
  pump_for(0.2);
  printf("{\"ready\":%ld}\n", opened);
  fflush(stdout);
  if (read(0, text, 1) != 1) return 2;

  for (int i = 0; backend_count && i < listener_count; i++) {
    listeners[i]->had = calloc(1, MOST / 8);
    memset(listeners[i]->newest, -1, sizeof listeners[i]->newest);
  }
  int timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
  struct epoll_event e = {.events = EPOLLIN | EPOLLET, .data.ptr = 0};
  epoll_ctl(loop, EPOLL_CTL_ADD, timer, &e);
  double cpu_0 = cpu();
  uint64_t start = now(), stop = start + seconds * 1e9, due = start;
  int next = 0;
  srand48(7);
  while (now() < stop && !(errors && backend_count)) {
    if (!backend_count) {
      pump(10);
      continue;
    }
    if (rate == 0) {
      for (int i = 0; i < backend_count; i++)
        /* a new batch when half of the window is free: one write for many lines, as a pipelining backend does */
        if (backends[i]->outstanding <= window / 2) send_lines(backends[i], line, window, window);
      pump(10);
      continue;
    }
    while (due <= now()) {
      Peer *p = backends[next];
      if (p->outstanding >= window) {
        held++;
        break;
      }
      send_lines(p, line, 1, window);
      next = (next + 1) % backend_count;
      due += -log(1 - drand48()) / rate * 1e9;
    }
    struct itimerspec at = {.it_value = {due / 1000000000, due % 1000000000}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, 0);
    pump(10);
  }
  uint64_t last = now();
  long before = progress();
  while (!finished() && now() - last < 5e9) {
    pump(10);
    if (progress() != before) {
      before = progress();
      last = now();
    }
  }
  double wall = ((finished() ? now() : last) - start) / 1e9, used = cpu() - cpu_0;
  long lost = 0;
  int orders = 0;
  for (int i = 0; i < listener_count; i++) {
    lost += sent - listeners[i]->seen;
    int known = 0;
    for (int k = 0; k < i; k++)
      known |= listeners[k]->order == listeners[i]->order;
    orders += !known;
  }
  printf("{\"events\":%ld,\"acked\":%ld,\"lost\":%ld,\"repeated\":%ld,\"reordered\":%ld,\"orders\":%d,\"errors\":%ld,"
         "\"held\":%ld,\"pings\":%ld,\"wall_s\":%.3f,\"per_s\":%.1f,\"client_cpu\":%.4f",
         sent, acked, lost, repeated, reordered, orders, errors, held, pings, wall, sent / wall, used / wall);
  tell("same", &same);
  tell("other", &other);
  printf("}\n");
  return 0;
}
