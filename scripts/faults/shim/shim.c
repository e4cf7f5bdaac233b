/* Makes chosen system calls of a process fail, at a moment that is chosen from outside.
 *
 * Loaded with LD_PRELOAD. FT_SHIM names a file of 64 bytes, which is mapped. It says what fails from the moment that it
 * is written: "CALL SKIP TIMES ERRNO ID ." and blanks. CALL is run, lapic, msrs or mmap; the first SKIP calls of the kind
 * go through, the next TIMES fail with ERRNO (-1: all that follow). ID tells an order from the same one given before.
 * Each call that fails is told on standard error, with the time in microseconds since 1970.
 * Build: cc -shared -fPIC -O2 -o shim.so shim.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define ORDER_BYTES 64
#define KVMIO 0xae

static const struct {
    const char *name;
    int ioctl; /* number of the ioctl; -1: not an ioctl */
} calls[] = {{"run", 0x80}, {"lapic", 0x8f}, {"msrs", 0x89}, {"mmap", -1}};
#define CALLS (sizeof calls / sizeof *calls)

static int (*real_ioctl)(int, unsigned long, void *);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static const char *order; /* as it is written now; NULL: nothing fails */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char known[ORDER_BYTES]; /* the order that the rest belongs to */
static unsigned call = CALLS;
static long skip, times;
static int code;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("FT_SHIM");
    real_ioctl = (int (*)(int, unsigned long, void *))dlsym(RTLD_NEXT, "ioctl");
    real_mmap = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    void *mapped = real_mmap(NULL, ORDER_BYTES, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapped != MAP_FAILED)
        order = mapped;
}

static void read_order(void) {
    char name[16], end;
    memcpy(known, order, ORDER_BYTES);
    call = CALLS;
    char text[ORDER_BYTES + 1] = {0};
    memcpy(text, known, ORDER_BYTES);
    /* A line that is not written to its end says nothing yet. */
    if (sscanf(text, "%15s %ld %ld %d %*s %c", name, &skip, &times, &code, &end) != 5 || end != '.')
        return;
    for (unsigned at = 0; at < CALLS; at++)
        if (strcmp(name, calls[at].name) == 0)
            call = at;
}

/* The error that this call fails with, or 0. */
static int failure(unsigned asked) {
    int fails = 0;
    pthread_mutex_lock(&lock);
    if (memcmp(known, order, ORDER_BYTES) != 0)
        read_order();
    if (asked == call) {
        if (skip > 0)
            skip--;
        else if (times != 0) {
            times -= times > 0;
            fails = code;
        }
    }
    pthread_mutex_unlock(&lock);
    if (fails) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        long long us = now.tv_sec * 1000000LL + now.tv_nsec / 1000;
        /* The thread is confined, and the C library's streams ask for more than a write. */
        char text[96];
        int length =
            snprintf(text, sizeof text, "shim: %s fails with errno %d at %lld\n", calls[asked].name, fails, us);
        ssize_t told = write(STDERR_FILENO, text, length);
        (void)told;
    }
    return fails;
}

int ioctl(int fd, unsigned long request, ...) {
    va_list arguments;
    va_start(arguments, request);
    void *argument = va_arg(arguments, void *);
    va_end(arguments);
    if (order && (request >> 8 & 0xff) == KVMIO)
        for (unsigned at = 0; at < CALLS; at++) {
            int fails = calls[at].ioctl == (int)(request & 0xff) ? failure(at) : 0;
            if (fails) {
                errno = fails;
                return -1;
            }
        }
    return real_ioctl(fd, request, argument);
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    /* The dynamic loader calls before the constructor. */
    if (!real_mmap)
        real_mmap = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    /* Memory of a file: a guest's, or a vCPU's page. The allocator's is not touched. */
    if (order && fd >= 0) {
        int fails = failure(CALLS - 1);
        if (fails) {
            errno = fails;
            return MAP_FAILED;
        }
    }
    return real_mmap(address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset) {
    return mmap(address, length, protection, flags, fd, offset);
}
