/* An echo server for TCP, and a crowd of users who all come at the same moment. services.py compiles and starts the
 * server, crowd.py starts the crowd.
 *
 * usage: tcpecho serve ADDRESS PORT
 *        tcpecho crowd ADDRESS PORT USERS TIMEOUT_S   each connects, sends 1 KiB, gets it back and leaves
 *
 * "refused" are users whose connection failed, or ended before the last byte, "wrong" those who got other bytes than
 * theirs, "silent" those without an answer in time. The waits of all users are from connect to the last byte. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE = 1024, BATCH = 512, BACKLOG = 4096, READ_BYTES = 1 << 16 };

struct user {
    int fd;
    int got; /* bytes of the answer */
    double began_s, wait_s;
    unsigned char answer[MESSAGE];
};

static double clock_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

static struct sockaddr_in address(const char *host, const char *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(port))};
    if (inet_pton(AF_INET, host, &a.sin_addr) != 1) die(host);
    return a;
}

static int tcp_socket(void) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket");
    return fd;
}

static void watch(int epoll, int operation, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = {.events = events, .data.u64 = data};
    if (epoll_ctl(epoll, operation, fd, &event)) die("epoll_ctl");
}

/* Sends back what a user has sent. The answers are short, and users read them: a socket that is full is a user
 * who does not, and is closed. */
static void echo(int fd) {
    static char buffer[READ_BYTES];
    ssize_t n = read(fd, buffer, sizeof buffer);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 || send(fd, buffer, (size_t)n, MSG_NOSIGNAL) != n) close(fd);
}

_Noreturn static void serve(const char *host, const char *port) {
    struct sockaddr_in here = address(host, port);
    struct epoll_event events[BATCH];
    int listener = tcp_socket(), epoll = epoll_create1(EPOLL_CLOEXEC), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&here, sizeof here) || listen(listener, BACKLOG)) die("listen");
    watch(epoll, EPOLL_CTL_ADD, listener, EPOLLIN, (uint64_t)listener);
    for (;;) {
        int ready = epoll_wait(epoll, events, BATCH, -1);
        for (int i = 0; i < ready; i++) {
            int fd = (int)events[i].data.u64;
            if (fd != listener) {
                echo(fd);
                continue;
            }
            while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
                watch(epoll, EPOLL_CTL_ADD, fd, EPOLLIN, (uint64_t)fd);
            if (errno == EMFILE) die("accept");
        }
    }
}

/* Fills a message with bytes that differ from those of other users. */
static void fill(unsigned char *message, uint64_t number) {
    for (unsigned i = 0; i < MESSAGE; i++) message[i] = (unsigned char)((number * 2654435761u + i * 7) >> (i % 24));
}

enum outcome { WAITS, SERVED, REFUSED, WRONG };

/* Goes on with a user whose socket is ready: sends the message, or reads the answer. */
static enum outcome go_on(struct user *user, uint64_t number, int epoll, uint32_t events) {
    unsigned char message[MESSAGE];
    fill(message, number);
    if (events & EPOLLOUT) {
        if (send(user->fd, message, MESSAGE, MSG_NOSIGNAL) != MESSAGE) return REFUSED; /* or not connected */
        watch(epoll, EPOLL_CTL_MOD, user->fd, EPOLLIN, number);
        return WAITS;
    }
    ssize_t n = read(user->fd, user->answer + user->got, (size_t)(MESSAGE - user->got));
    if (n < 0 && errno == EAGAIN) return WAITS;
    if (n <= 0) return REFUSED;
    user->got += (int)n;
    if (user->got < MESSAGE) return WAITS;
    return memcmp(user->answer, message, MESSAGE) ? WRONG : SERVED;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void come(struct user *users, uint64_t count, struct sockaddr_in there, int epoll) {
    for (uint64_t i = 0; i < count; i++) {
        users[i].fd = tcp_socket();
        users[i].began_s = clock_s();
        if (connect(users[i].fd, (struct sockaddr *)&there, sizeof there) && errno != EINPROGRESS)
            die("connect");
        watch(epoll, EPOLL_CTL_ADD, users[i].fd, EPOLLOUT, i);
    }
}

static void crowd(struct sockaddr_in there, uint64_t count, double timeout_s) {
    struct user *users = calloc(count, sizeof *users);
    double *waits = calloc(count, sizeof *waits), end_s;
    struct epoll_event events[BATCH];
    uint64_t outcomes[WRONG + 1] = {0}, left = count;
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (!users || !waits || !count) die("users");
    come(users, count, there, epoll);
    end_s = clock_s() + timeout_s;
    while (left && clock_s() < end_s) {
        int ready = epoll_wait(epoll, events, BATCH, 100);
        for (int i = 0; i < ready; i++) {
            struct user *user = &users[events[i].data.u64];
            enum outcome outcome = go_on(user, events[i].data.u64, epoll, events[i].events);
            if (outcome == WAITS) continue;
            outcomes[outcome]++;
            left--;
            user->wait_s = clock_s() - user->began_s;
            close(user->fd);
        }
    }
    for (uint64_t i = 0; i < count; i++)
        waits[i] = users[i].wait_s > 0 ? users[i].wait_s : clock_s() - users[i].began_s;
    qsort(waits, count, sizeof *waits, by_size);
    printf("served=%llu refused=%llu wrong=%llu silent=%llu p50_ms=%.3f longest_ms=%.3f\n",
           (unsigned long long)outcomes[SERVED], (unsigned long long)outcomes[REFUSED],
           (unsigned long long)outcomes[WRONG], (unsigned long long)left, waits[count / 2] * 1e3,
           waits[count - 1] * 1e3);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "serve")) serve(argv[2], argv[3]);
    if (argc != 6 || strcmp(argv[1], "crowd")) return 2;
    crowd(address(argv[2], argv[3]), strtoull(argv[4], NULL, 10), atof(argv[5]));
    return 0;
}
