/* A bare round trip over loopback TCP: the floor under every request of the tcp fabric.
 *
 *   loopback pingpong REQUEST_BYTES REPLY_BYTES CLIENT_SPIN_US SERVER_SPIN_US SECONDS
 *   loopback get BYTES VALUES SECONDS   the server sends BYTES for each 64-byte request
 *   loopback put BYTES VALUES SECONDS   the client sends BYTES, the server answers with 64 bytes
 *   loopback loads BYTES                one `get` for each line of stdin
 *
 * Client and server are two processes with one blocking-free socket each. Waiting is spin for at
 * most so many microseconds, giving way between two looks, then sleep in poll(), on each side. The
 * client uses one warm buffer again and again. So does the server, unless it has VALUES values:
 * then it takes their buffers in turn, which are as warm, or as cold, as those of a store that
 * holds so many. Prints one line: operations, elapsed ns, p50, p99 and p99.9 in ns.
 *
 * `loads` is a worker of the bench: it sleeps in between, looks at each byte that came and clears
 * it, outside the timing, and prints the JSON lines that its fellows do.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kLatencyMax = 4 << 20, kPollTimeoutMs = 10000 };

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static void fail(const char* what) {
  fprintf(stderr, "loopback: %s: %s\n", what, strerror(errno));
  exit(1);
}

static void wait_for(int socket, short events) {
  struct pollfd entry = {.fd = socket, .events = events};
  if (poll(&entry, 1, kPollTimeoutMs) <= 0) fail("poll");
}

/* Receives exactly `bytes`; returns 0 at the end of the stream. */
static int receive(int socket, char* buffer, uint64_t bytes, uint64_t spin_ns) {
  uint64_t spin_until = spin_ns ? now_ns() + spin_ns : 0;
  while (bytes > 0) {
    ssize_t count = recv(socket, buffer, bytes, MSG_DONTWAIT);
    if (count == 0) return 0;
    if (count < 0) {
      if (errno != EAGAIN && errno != EINTR) return 0;
      if (spin_until == 0 || now_ns() > spin_until) {
        wait_for(socket, POLLIN);
      } else {
        sched_yield();
      }
      continue;
    }
    buffer += count;
    bytes -= (uint64_t)count;
    if (spin_ns) spin_until = now_ns() + spin_ns;
  }
  return 1;
}

static void transmit(int socket, const char* buffer, uint64_t bytes) {
  while (bytes > 0) {
    ssize_t count = send(socket, buffer, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0) {
      if (errno != EAGAIN && errno != EINTR) fail("send");
      wait_for(socket, POLLOUT);
      continue;
    }
    buffer += count;
    bytes -= (uint64_t)count;
  }
}

static char* warm_buffer(uint64_t bytes) {
  char* buffer = malloc(bytes ? bytes : 1);
  if (!buffer) fail("malloc");
  memset(buffer, 1, bytes ? bytes : 1);
  return buffer;
}

static int compare(const void* left, const void* right) {
  uint32_t a = *(const uint32_t*)left, b = *(const uint32_t*)right;
  return (a > b) - (a < b);
}

/* As kvstore does between processes of one host: the pacing of some congestion controls halves
 * large transfers over loopback. */
static void without_pacing(int socket) {
  setsockopt(socket, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

static void serve(int listener, uint64_t request_bytes, uint64_t reply_bytes, uint64_t values,
                  uint64_t spin_ns) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  int one = 1;
  int peer = accept(listener, NULL, NULL);
  if (peer < 0) fail("accept");
  setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  without_pacing(peer);
  uint64_t value_bytes = request_bytes > reply_bytes ? request_bytes : reply_bytes;
  char* memory = warm_buffer(value_bytes * values);
  for (uint64_t turn = 0;; ++turn) {
    char* value = memory + turn % values * value_bytes;
    if (!receive(peer, value, request_bytes, spin_ns)) _exit(0);
    transmit(peer, value, reply_bytes);
  }
}

static int listen_on_loopback(struct sockaddr_in* address) {
  socklen_t length = sizeof *address;
  memset(address, 0, sizeof *address);
  address->sin_family = AF_INET;
  address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  if (listener < 0 || bind(listener, (struct sockaddr*)address, length) != 0 ||
      listen(listener, 1) != 0 || getsockname(listener, (struct sockaddr*)address, &length) != 0)
    fail("listen");
  return listener;
}

/* Starts a server; returns a socket to it. */
static int connected_to_server(uint64_t request_bytes, uint64_t reply_bytes, uint64_t values,
                               uint64_t server_spin_ns) {
  struct sockaddr_in address;
  int one = 1, listener = listen_on_loopback(&address);
  pid_t server = fork();
  if (server < 0) fail("fork");
  if (server == 0) serve(listener, request_bytes, reply_bytes, values, server_spin_ns);
  close(listener);
  int peer = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(peer, (struct sockaddr*)&address, sizeof address) != 0) fail("connect");
  setsockopt(peer, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  without_pacing(peer);
  return peer;
}

static void serve_loads(uint64_t bytes) {
  enum { kRequestBytes = 64, kSpinNs = 50000 };
  int peer = connected_to_server(kRequestBytes, bytes, 1, 0);
  char* request = warm_buffer(kRequestBytes);
  char* reply = warm_buffer(bytes);
  char line[256];
  printf("{\"event\": \"ready\"}\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin)) {
    uint64_t before = now_ns();
    transmit(peer, request, kRequestBytes);
    if (!receive(peer, reply, bytes, kSpinNs)) fail("receive");
    uint64_t elapsed = now_ns() - before;
    for (uint64_t i = 0; i < bytes; ++i) {
      if (reply[i] != 1) fail("other bytes came than were sent");
    }
    memset(reply, 0, bytes);
    printf("{\"event\": \"loaded\", \"seconds\": %.9f}\n", (double)elapsed / 1e9);
    fflush(stdout);
  }
  close(peer);
  wait(NULL);
}

static void run(uint64_t request_bytes, uint64_t reply_bytes, uint64_t values,
                uint64_t client_spin_ns, uint64_t server_spin_ns, double seconds) {
  int peer = connected_to_server(request_bytes, reply_bytes, values, server_spin_ns);
  char* request = warm_buffer(request_bytes);
  char* reply = warm_buffer(reply_bytes);
  uint32_t* latency_ns = malloc(sizeof(uint32_t) * kLatencyMax);
  if (!latency_ns) fail("malloc");
  uint64_t begin = now_ns(), warm_until = begin + (uint64_t)(seconds * 0.2e9);
  uint64_t end = warm_until + (uint64_t)(seconds * 1e9), count = 0, started = warm_until, finish;
  for (;;) {
    uint64_t before = now_ns();
    transmit(peer, request, request_bytes);
    if (!receive(peer, reply, reply_bytes, client_spin_ns)) fail("receive");
    finish = now_ns();
    if (before < warm_until) {
      started = finish;
      continue;
    }
    latency_ns[count++] = (uint32_t)(finish - before);
    if (finish > end || count == kLatencyMax) break;
  }
  close(peer);
  wait(NULL);
  qsort(latency_ns, count, sizeof *latency_ns, compare);
  printf("%llu %llu %u %u %u\n", (unsigned long long)count, (unsigned long long)(finish - started),
         latency_ns[count / 2], latency_ns[count * 99 / 100], latency_ns[count * 999 / 1000]);
}

int main(int count, char** words) {
  if (count == 7 && strcmp(words[1], "pingpong") == 0) {
    run(strtoull(words[2], NULL, 10), strtoull(words[3], NULL, 10), 1,
        strtoull(words[4], NULL, 10) * 1000, strtoull(words[5], NULL, 10) * 1000, atof(words[6]));
    return 0;
  }
  if (count == 3 && strcmp(words[1], "loads") == 0 && atof(words[2]) > 0) {
    serve_loads(strtoull(words[2], NULL, 10));
    return 0;
  }
  uint64_t bytes = count == 5 ? strtoull(words[2], NULL, 10) : 0;
  uint64_t values = count == 5 ? strtoull(words[3], NULL, 10) : 0;
  if (values > 0 && strcmp(words[1], "get") == 0) {
    run(64, bytes, values, 50000, 0, atof(words[4]));
    return 0;
  }
  if (values > 0 && strcmp(words[1], "put") == 0) {
    run(bytes, 64, values, 50000, 0, atof(words[4]));
    return 0;
  }
  fprintf(stderr, "usage: see the first lines of the source\n");
  return 2;
}
