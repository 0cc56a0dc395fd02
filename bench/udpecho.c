/* An echo server for datagrams and a load generator, both much faster than what a benchmark measures with them.
 * services.py compiles and starts the server, work.py starts the load generator.
 *
 * usage: udpecho serve ADDRESS PORT
 *        udpecho load ADDRESS PORT USERS IN_FLIGHT SECONDS   makes as many round trips as possible
 *        udpecho rate ADDRESS PORT USERS PER_SECOND SECONDS  sends at a fixed rate and counts the answers
 *
 * Each user has its own socket. Every datagram carries its user, its slot and a number, and is checked byte by byte
 * when it comes back: an answer that belongs to another user, or differs from what was sent, counts as wrong. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    BATCH = 64,                  /* datagrams of one system call */
    MAX_DATAGRAM = 65536,
    MAX_USERS = 1024,
    MAX_IN_FLIGHT = BATCH,
    SOCKET_BUFFER = 4 << 20,
    LOST_AFTER_MS = 250,
    SWEEP_MS = 50,               /* how often lost datagrams are looked for */
    GRACE_MS = 300,              /* how long `rate` waits for late answers */
};

struct datagram {
    uint64_t run; /* differs from the number of an earlier run on the same address */
    uint32_t user, slot;
    uint64_t number;
    unsigned char filling[40];
};

struct slot {
    uint64_t number;
    double sent_s;
};

struct user {
    int fd;
    struct slot slots[MAX_IN_FLIGHT];
};

static struct user users[MAX_USERS];
static int user_count, in_flight;
static uint64_t run, next_number, answered, lost, late, wrong;
static double now_s; /* at the last batch: reading the clock for each datagram would cost too much */
static unsigned char *seen; /* `rate`: which numbers have come back */

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

static int udp_socket(void) {
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), size = SOCKET_BUFFER;
    if (fd < 0) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    return fd;
}

_Noreturn static void serve(const char *host, const char *port) {
    static char buffers[BATCH][MAX_DATAGRAM];
    static struct sockaddr_in from[BATCH];
    struct iovec pieces[BATCH];
    struct mmsghdr batch[BATCH];
    struct sockaddr_in here = address(host, port);
    int fd = udp_socket();
    if (bind(fd, (struct sockaddr *)&here, sizeof here)) die("bind");
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            pieces[i] = (struct iovec){buffers[i], MAX_DATAGRAM};
            batch[i].msg_hdr = (struct msghdr){
                .msg_name = &from[i], .msg_namelen = sizeof from[i], .msg_iov = &pieces[i], .msg_iovlen = 1};
        }
        int n = recvmmsg(fd, batch, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < n; i++) pieces[i].iov_len = batch[i].msg_len;
        for (int sent = 0; sent < n;) {
            int m = sendmmsg(fd, batch + sent, (unsigned)(n - sent), 0);
            sent += m > 0 ? m : 1; /* a datagram that cannot be sent is dropped */
        }
    }
}

static void fill(struct datagram *d, uint32_t user, uint32_t slot, uint64_t number) {
    *d = (struct datagram){.run = run, .user = user, .slot = slot, .number = number};
    memset(d->filling, (int)(user * 31 + number), sizeof d->filling);
}

/* Sends a new datagram for each of the listed slots, in one system call. */
static void ask(uint32_t user, const uint32_t *slots, int count) {
    struct datagram asks[BATCH];
    struct iovec pieces[BATCH];
    struct mmsghdr batch[BATCH];
    for (int i = 0; i < count; i++) {
        struct slot *slot = &users[user].slots[slots[i] % MAX_IN_FLIGHT];
        *slot = (struct slot){.number = ++next_number, .sent_s = now_s};
        fill(&asks[i], user, slots[i], slot->number);
        pieces[i] = (struct iovec){&asks[i], sizeof asks[i]};
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    /* The first call may report the error of an earlier datagram. A datagram that is not sent counts as lost later. */
    if (sendmmsg(users[user].fd, batch, (unsigned)count, 0) < 0) sendmmsg(users[user].fd, batch, (unsigned)count, 0);
}

/* Tells whether a datagram was sent by this user. Counts it as wrong if not, unless it belongs to an earlier run. */
static int is_own(uint32_t user, const struct datagram *d, size_t length) {
    struct datagram expected;
    if (length >= sizeof d->run && d->run != run) return 0;
    fill(&expected, user, d->slot, d->number);
    if (length == sizeof *d && !memcmp(d, &expected, sizeof expected)) return 1;
    wrong++;
    return 0;
}

/* Reads the answers to a user. Fills `free_slots` with the slots that were answered, and returns how many. */
static int take_answers(uint32_t user, uint32_t *free_slots, int flags) {
    struct datagram answers[BATCH];
    struct iovec pieces[BATCH];
    struct mmsghdr batch[BATCH];
    int freed = 0;
    for (int i = 0; i < BATCH; i++) {
        pieces[i] = (struct iovec){&answers[i], sizeof answers[i]};
        batch[i].msg_hdr = (struct msghdr){.msg_iov = &pieces[i], .msg_iovlen = 1};
    }
    int n = recvmmsg(users[user].fd, batch, BATCH, flags, NULL);
    for (int i = 0; i < n; i++) {
        struct datagram *d = &answers[i];
        if (!is_own(user, d, batch[i].msg_len)) continue;
        if (seen) { /* rate */
            if (d->number <= next_number && !seen[d->number]) answered++, seen[d->number] = 1;
        } else if (d->slot < (uint32_t)in_flight && users[user].slots[d->slot].number == d->number) {
            answered++;
            users[user].slots[d->slot].number = 0; /* a second copy of the answer counts as late */
            free_slots[freed++] = d->slot;
        } else {
            late++;
        }
    }
    return freed;
}

static void give_up_on_lost(void) {
    for (uint32_t u = 0; u < (uint32_t)user_count; u++)
        for (uint32_t s = 0; s < (uint32_t)in_flight; s++)
            if (now_s - users[u].slots[s].sent_s > LOST_AFTER_MS / 1e3) {
                lost++;
                ask(u, &s, 1);
            }
}

static int open_users(const char *host, const char *port) {
    struct sockaddr_in to = address(host, port);
    struct timeval wait = {.tv_usec = SWEEP_MS * 1000};
    int poll = epoll_create1(EPOLL_CLOEXEC);
    for (uint32_t u = 0; u < (uint32_t)user_count; u++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u32 = u};
        users[u].fd = udp_socket();
        setsockopt(users[u].fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof wait);
        if (connect(users[u].fd, (struct sockaddr *)&to, sizeof to)) die("connect");
        if (epoll_ctl(poll, EPOLL_CTL_ADD, users[u].fd, &event)) die("epoll");
    }
    return poll;
}

static void answer_round(int poll) {
    struct epoll_event events[BATCH];
    uint32_t slots[BATCH];
    if (user_count == 1) { /* a blocking read needs no system call to wait before it */
        int freed = take_answers(0, slots, MSG_WAITFORONE);
        now_s = clock_s();
        if (freed) ask(0, slots, freed);
        return;
    }
    int n = epoll_wait(poll, events, BATCH, SWEEP_MS);
    now_s = clock_s();
    for (int i = 0; i < n; i++) {
        int freed = take_answers(events[i].data.u32, slots, MSG_DONTWAIT);
        if (freed) ask(events[i].data.u32, slots, freed);
    }
}

static int load(const char *host, const char *port, double seconds) {
    int poll = open_users(host, port);
    double start_s = now_s = clock_s(), sweep_s = start_s;
    for (uint32_t u = 0; u < (uint32_t)user_count; u++)
        for (uint32_t s = 0; s < (uint32_t)in_flight; s++) ask(u, &s, 1);
    while (now_s - start_s < seconds) {
        answer_round(poll);
        if (now_s - sweep_s > SWEEP_MS / 1e3) {
            sweep_s = now_s;
            give_up_on_lost();
        }
    }
    printf("answered=%lu seconds=%.6f lost=%lu late=%lu wrong=%lu\n", answered, now_s - start_s, lost, late, wrong);
    return 0;
}

static int rate(const char *host, const char *port, double per_second, double seconds) {
    struct epoll_event events[BATCH];
    uint32_t slots[BATCH], any_slot = 0;
    int poll = open_users(host, port);
    double start_s = clock_s();
    if (!(seen = calloc((size_t)(per_second * seconds) + 2, 1))) die("memory");
    while ((now_s = clock_s()) - start_s < seconds + GRACE_MS / 1e3) {
        double so_far_s = now_s - start_s < seconds ? now_s - start_s : seconds;
        while ((double)next_number < so_far_s * per_second) ask((uint32_t)(next_number % (uint64_t)user_count), &any_slot, 1);
        int n = epoll_wait(poll, events, BATCH, 1);
        for (int i = 0; i < n; i++) take_answers(events[i].data.u32, slots, MSG_DONTWAIT);
    }
    printf("sent=%lu answered=%lu wrong=%lu\n", next_number, answered, wrong);
    return 0;
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "serve")) serve(argv[2], argv[3]);
    if (argc != 7) return 2;
    int is_load = !strcmp(argv[1], "load");
    user_count = atoi(argv[4]);
    in_flight = is_load ? atoi(argv[5]) : 1;
    if (user_count < 1 || user_count > MAX_USERS || in_flight < 1 || in_flight > MAX_IN_FLIGHT) return 2;
    run = (uint64_t)(clock_s() * 1e9) ^ (uint64_t)getpid() << 48;
    return is_load ? load(argv[2], argv[3], atof(argv[6])) : rate(argv[2], argv[3], atof(argv[5]), atof(argv[6]));
}
