/*
 * Every request gets a due time: when the link of its disk (bandwidth) has carried it, plus the latency and a
 * random share of it. Threads take any request that is due, at random; so requests overlap their latency, and
 * complete out of order, with latency and without. The pool serves all disks, as in the real library.
 */
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "async.h"
#include "errors.h"
#include "log.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all that follows, and of disk->link_free_ns */
static pthread_cond_t changed;
static pthread_t threads[64];
static unsigned thread_count;
static bool stopping;
static struct request *pending;
static struct request *parked; /* chosen to hang: never answered */
static uint64_t random_state;

/* xorshift64: any cheap generator whose seed the user gives. */
static uint64_t random_number(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state;
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

static struct timespec timespec_of(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / 1000000000), .tv_nsec = (long)(ns % 1000000000)};
}

static uint64_t due_time(struct disk *disk, uint64_t bytes)
{
    uint64_t now = now_ns();
    uint64_t due = now;
    if (knobs.bytes_per_s > 0) {
        due = disk->link_free_ns > now ? disk->link_free_ns : now;
        due += bytes * 1000000000 / knobs.bytes_per_s;
        disk->link_free_ns = due;
    }
    if (knobs.latency_ns > 0) {
        due += knobs.latency_ns + random_number() % knobs.latency_ns;
    }
    return due;
}

void async_delay(struct disk *disk, uint64_t bytes)
{
    pthread_mutex_lock(&lock);
    struct timespec due = timespec_of(due_time(disk, bytes));
    pthread_mutex_unlock(&lock);
    if (knobs.latency_ns > 0 || knobs.bytes_per_s > 0) {
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &due, NULL) != 0) {
        }
    }
}

/* ---- answering -------------------------------------------------------------------------------------- */

VixError request_run(struct request *request)
{
    VixError result = request->injected;
    uint64_t count = request->fate.cut ? request->count / 2 : request->count;
    if (request->fate.lost || (result != VIX_OK && !request->fate.cut) || count == 0) {
        return result;
    }
    int code = disk_transfer(request->disk, request->start, count, request->buffer, request->write);
    if (result != VIX_OK || code != VIX_OK) {
        return result != VIX_OK ? result : vix_error(code);
    }
    return request->write ? fault_after(CALL_WRITE, &request->fate) : VIX_OK;
}

static void answer(struct request *request)
{
    struct disk *disk = request->disk;
    VixError result = request_run(request);
    if (request->fate.hang) {
        return; /* it stays outstanding */
    }
    pthread_mutex_lock(&disk->lock);
    disk->outstanding--;
    disk->delivering++;
    pthread_mutex_unlock(&disk->lock);
    guard_in_callback(true);
    request->callback(request->data, result);
    guard_in_callback(false);
    pthread_mutex_lock(&disk->lock);
    disk->delivering--;
    pthread_cond_broadcast(&disk->settled);
    pthread_mutex_unlock(&disk->lock);
}

/* Remove a random due request; when none is due, *wake_ns is when the next will be (0: none is pending). */
static struct request *take_due(uint64_t *wake_ns)
{
    uint64_t now = now_ns();
    uint64_t due = 0;
    struct request **chosen = NULL;
    *wake_ns = 0;
    for (struct request **place = &pending; *place != NULL; place = &(*place)->next) {
        if ((*place)->due_ns <= now) {
            due++;
            chosen = random_number() % due == 0 ? place : chosen;
        } else if (*wake_ns == 0 || (*place)->due_ns < *wake_ns) {
            *wake_ns = (*place)->due_ns;
        }
    }
    struct request *request = NULL;
    if (chosen != NULL) {
        request = *chosen;
        *chosen = request->next;
    }
    return request;
}

static void *work(void *unused)
{
    log_info("transport thread %d started\n", (int)guard_thread());
    pthread_mutex_lock(&lock);
    while (!stopping) {
        uint64_t wake_ns;
        struct request *request = take_due(&wake_ns);
        if (request != NULL) {
            pthread_mutex_unlock(&lock);
            answer(request);
            free(request);
            pthread_mutex_lock(&lock);
        } else if (wake_ns > 0) {
            struct timespec wake = timespec_of(wake_ns);
            pthread_cond_timedwait(&changed, &lock, &wake);
        } else {
            pthread_cond_wait(&changed, &lock);
        }
    }
    pthread_mutex_unlock(&lock);
    return unused;
}

/* ---- asking ----------------------------------------------------------------------------------------- */

static void enqueue(struct request *request)
{
    struct disk *disk = request->disk;
    pthread_mutex_lock(&disk->lock);
    disk->outstanding++;
    pthread_mutex_unlock(&disk->lock);
    pthread_mutex_lock(&lock);
    request->due_ns = due_time(disk, request->count * SECTOR_SIZE);
    request->next = pending;
    pending = request;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
}

static void park(struct request *request)
{
    pthread_mutex_lock(&request->disk->lock);
    request->disk->outstanding++;
    pthread_mutex_unlock(&request->disk->lock);
    pthread_mutex_lock(&lock);
    request->next = parked;
    parked = request;
    pthread_mutex_unlock(&lock);
}

VixError async_submit(const struct request *asked)
{
    struct request *request = malloc(sizeof *request);
    if (request == NULL) {
        return vix_error(VIX_E_OUT_OF_MEMORY);
    }
    *request = *asked;
    request->injected = fault_next(request->write ? CALL_WRITE : CALL_READ, &request->fate);
    if (request->fate.hang) {
        park(request);
    } else if (request->disk->remote) {
        enqueue(request);
    } else {
        pthread_mutex_lock(&request->disk->lock);
        request->disk->outstanding++;
        pthread_mutex_unlock(&request->disk->lock);
        async_delay(request->disk, request->count * SECTOR_SIZE);
        answer(request);
        free(request);
    }
    return VIX_ASYNC;
}

/* ---- the pool --------------------------------------------------------------------------------------- */

int async_start(void)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&changed, &attributes);
    pthread_condattr_destroy(&attributes);
    random_state = knobs.seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
    random_state += random_state == 0;
    while (thread_count < knobs.threads) {
        if (pthread_create(&threads[thread_count], NULL, work, NULL) != 0) {
            return VIX_E_DISK_SUBSYSTEM_INIT_FAIL;
        }
        thread_count++;
    }
    return VIX_OK;
}

void async_stop(void)
{
    pthread_mutex_lock(&lock);
    stopping = true;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    while (thread_count > 0) {
        pthread_join(threads[--thread_count], NULL);
    }
}
