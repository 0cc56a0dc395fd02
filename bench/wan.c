/* The link of a long path: carries IP packets between the tun devices of two network namespaces, with delay, loss
 * and a rate. wan.py compiles and starts this program, and gives the devices their addresses.
 *
 * usage: wan NETNS_A NETNS_B DELAY_MS LOSS_PERCENT RATE_MBIT
 *
 * DELAY_MS is one way; a RATE_MBIT of 0 is no limit. The program prints "up" when it has made both devices, and runs
 * until standard input closes. A 'c' on standard input cuts the link, so that every packet is lost, as if a cable were
 * pulled on the way; an 'm' mends the link. The program answers each with a line when it has done so. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    QUEUE_PACKETS = 32768, /* under way in one direction: enough for 7 Gbit/s at 50 ms, or 400 Mbit/s at a second */
    PACKET_BYTES = 1600,   /* a packet of a tun device has at most 1,500 */
};
static const uint64_t QUEUE_NS = 200000000; /* how much a link with a limit buffers before it drops, as routers do */
static const double BYTE_NS_AT_1_MBIT = 8e3; /* nanoseconds that a byte takes at 1 Mbit/s */

struct packet {
    uint64_t due_ns; /* when the packet arrives */
    uint16_t length;
    char bytes[PACKET_BYTES];
};

/* One direction. The reader thread appends at `head`, the writer thread takes from `tail`. */
struct direction {
    int from, to; /* tun devices */
    unsigned head, tail;
    unsigned seed; /* of the random numbers that decide which packets are lost */
    struct packet *queue;
    pthread_mutex_t lock;
    pthread_cond_t arrived;
};

static double delay_ns, loss_percent, ns_per_byte;
static atomic_bool is_cut;

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void die(const char *what) {
    perror(what);
    exit(1);
}

/* Opens the device "wan0" inside a named namespace. The thread stays in that namespace, which matters to nobody. */
static int open_tun(const char *netns) {
    char path[256];
    snprintf(path, sizeof path, "/run/netns/%s", netns);
    int ns = open(path, O_RDONLY | O_CLOEXEC);
    if (ns < 0 || setns(ns, CLONE_NEWNET)) die(path);
    close(ns);
    int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC);
    if (fd < 0) die("/dev/net/tun");
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    strcpy(request.ifr_name, "wan0");
    if (ioctl(fd, TUNSETIFF, &request)) die("wan0");
    return fd;
}

static int is_lost(struct direction *d) {
    return atomic_load(&is_cut) || (loss_percent > 0 && rand_r(&d->seed) < loss_percent / 100 * RAND_MAX);
}

static void append(struct direction *d, const char *bytes, size_t length, uint64_t due_ns) {
    pthread_mutex_lock(&d->lock);
    if (d->head - d->tail < QUEUE_PACKETS) {
        struct packet *p = &d->queue[d->head++ % QUEUE_PACKETS];
        memcpy(p->bytes, bytes, length);
        p->length = (uint16_t)length;
        p->due_ns = due_ns;
        pthread_cond_signal(&d->arrived);
    }
    pthread_mutex_unlock(&d->lock);
}

static void *read_packets(void *arg) {
    struct direction *d = arg;
    uint64_t line_free_ns = 0; /* when a link with a limit has sent all earlier packets */
    for (;;) {
        char bytes[PACKET_BYTES];
        ssize_t n = read(d->from, bytes, sizeof bytes);
        if (n <= 0 || is_lost(d)) continue;
        uint64_t now = now_ns(), start = line_free_ns > now ? line_free_ns : now;
        uint64_t sent_ns = start + (uint64_t)((double)n * ns_per_byte);
        if (ns_per_byte > 0 && sent_ns - now > QUEUE_NS) continue;
        line_free_ns = sent_ns;
        append(d, bytes, (size_t)n, sent_ns + (uint64_t)delay_ns);
    }
    return NULL;
}

static void *write_packets(void *arg) {
    struct direction *d = arg;
    for (;;) {
        pthread_mutex_lock(&d->lock);
        while (d->head == d->tail) pthread_cond_wait(&d->arrived, &d->lock);
        pthread_mutex_unlock(&d->lock);
        struct packet *p = &d->queue[d->tail % QUEUE_PACKETS]; /* the reader does not overwrite it until `tail` moves */
        struct timespec due = {.tv_sec = (time_t)(p->due_ns / 1000000000u), .tv_nsec = (long)(p->due_ns % 1000000000u)};
        if (p->due_ns > now_ns()) clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL);
        if (!atomic_load(&is_cut) && write(d->to, p->bytes, p->length) < 0) {
            /* the packet is lost, as on any link whose device is down */
        }
        pthread_mutex_lock(&d->lock);
        d->tail++;
        pthread_mutex_unlock(&d->lock);
    }
    return NULL;
}

static void start_direction(int from, int to, unsigned seed) {
    struct direction *d = calloc(1, sizeof *d);
    pthread_t thread;
    if (!d || !(d->queue = malloc(QUEUE_PACKETS * sizeof *d->queue))) die("memory");
    d->from = from;
    d->to = to;
    d->seed = seed;
    pthread_mutex_init(&d->lock, NULL);
    pthread_cond_init(&d->arrived, NULL);
    if (pthread_create(&thread, NULL, read_packets, d) || pthread_create(&thread, NULL, write_packets, d)) die("thread");
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    delay_ns = atof(argv[3]) * 1e6;
    loss_percent = atof(argv[4]);
    ns_per_byte = atof(argv[5]) > 0 ? BYTE_NS_AT_1_MBIT / atof(argv[5]) : 0;
    int a = open_tun(argv[1]), b = open_tun(argv[2]);
    start_direction(a, b, 1);
    start_direction(b, a, 2);
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("up");
    char order;
    while (read(STDIN_FILENO, &order, 1) > 0) {
        atomic_store(&is_cut, order == 'c');
        puts(order == 'c' ? "cut" : "mended");
    }
    return 0;
}
