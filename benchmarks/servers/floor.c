/* The lower bound for every server: a loop of send() without building frames, without rooms, without error messages.
 *
 *     floor PORT PUSH_PORT      (PER=n: connection i is of group i / n; without it all are of one group)
 *
 * Each line of the backend goes to the group in "conversation_id", in one frame with a prepared header. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX = 70000 };
static int clients[MAX], count, per, kinds[MAX]; /* kinds, by descriptor: 1 listener, 2 push listener, 3 client, 4 backend */

static int listen_on(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
  inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
  if (bind(fd, (void *)&a, sizeof a) || listen(fd, 4096)) {
    perror("listen");
    exit(1);
  }
  return fd;
}

static void publish(const char *line, size_t size) {
  static char frame[1 << 16];
  size_t head = 2;
  frame[0] = (char)0x81;
  if (size < 126) {
    frame[1] = (char)size;
  } else {
    frame[1] = 126;
    frame[2] = (char)(size >> 8);
    frame[3] = (char)size;
    head = 4;
  }
  memcpy(frame + head, line, size);
  const char *named = strstr(line, "\"conversation_id\":");
  int group = named ? atoi(named + 18) : 0;
  int from = per ? group * per : 0, to = per ? from + per : count;
  for (int i = from; i < to && i < count; i++)
    if (send(clients[i], frame, head + size, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) perror("send");
}

int main(int argc, char **argv) {
  (void)argc;
  struct rlimit limit;
  getrlimit(RLIMIT_NOFILE, &limit);
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
  if (getenv("PER")) per = atoi(getenv("PER"));
  int loop = epoll_create1(0), ports[2] = {listen_on(atoi(argv[1])), listen_on(atoi(argv[2]))};
  for (int i = 0; i < 2; i++) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = ports[i]};
    kinds[ports[i]] = i + 1;
    epoll_ctl(loop, EPOLL_CTL_ADD, ports[i], &e);
  }
  static char rest[1 << 21];
  size_t held = 0;
  for (;;) {
    struct epoll_event events[256];
    int n = epoll_wait(loop, events, 256, -1);
    for (int i = 0; i < n; i++) {
      int fd = events[i].data.fd;
      if (kinds[fd] <= 2) {
        int new = accept(fd, 0, 0), one = 1;
        if (new < 0) continue;
        setsockopt(new, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        kinds[new] = kinds[fd] + 2;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = new};
        epoll_ctl(loop, EPOLL_CTL_ADD, new, &e);
        continue;
      }
      if (kinds[fd] == 3) {
        char data[8192];
        ssize_t size = recv(fd, data, sizeof data - 1, MSG_DONTWAIT);
        if (size <= 0) {
          close(fd);
        } else if (!memcmp(data, "GET ", 4)) {
          static const char answer[] =
              "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
              "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
          send(fd, answer, sizeof answer - 1, MSG_NOSIGNAL);
          clients[count++] = fd;
        }
        continue;
      }
      ssize_t size = recv(fd, rest + held, sizeof rest - held - 1, MSG_DONTWAIT);
      if (size <= 0) {
        close(fd);
        continue;
      }
      held += (size_t)size;
      rest[held] = 0;
      char *line = rest, *end;
      while ((end = memchr(line, '\n', held - (size_t)(line - rest)))) {
        *end = 0;
        publish(line, (size_t)(end - line));
        line = end + 1;
      }
      held -= (size_t)(line - rest);
      memmove(rest, line, held);
    }
  }
}
