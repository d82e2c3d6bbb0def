/* Memory, threads, locks, sleep and clocks of Windows 10 and later.
 *
 * Windows has one page size for a process without the privilege SeLockMemoryPrivilege, which
 * administrators grant to few accounts. Large pages are also never paged out and never given back
 * in part, so a model that waits would hold all its memory. So arenas lie on ordinary pages. */
#undef _WIN32_WINNT
#define _WIN32_WINNT 0x0A00 /* declare what Windows 10 has */
#define WIN32_LEAN_AND_MEAN
#include "os/os.h"

#include <windows.h>

#include <limits.h>
#include <malloc.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <x86intrin.h>
#endif

/* gcc stores vectors of 32 and 64 bytes with instructions that need their alignment, but aligns
 * the stack of a Windows x86-64 function to 16 bytes only (gcc's bug 54412). MSVC has neither
 * target pragmas nor GNU C's builtins. clang, clang-cl and zig cc are fine. */
#if !defined(__clang__)
#error "gpt2c for Windows needs clang, clang-cl or zig cc: gcc and MSVC cannot compile its kernels"
#endif

/* ---- memory ---- */

/* VirtualAlloc reserves address space in units of this size. */
#define RESERVED_UNIT ((size_t)64 << 10)

void *os_arena_alloc(size_t bytes) {
    if (bytes < RESERVED_UNIT) {
        void *memory = os_aligned_alloc(bytes);
        return memory ? memset(memory, 0, bytes) : NULL;
    }
    return VirtualAlloc(NULL, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

void os_arena_free(void *memory, size_t bytes) {
    if (bytes < RESERVED_UNIT)
        os_aligned_free(memory);
    else if (memory)
        VirtualFree(memory, 0, MEM_RELEASE);
}

/* MEM_RESET only marks the pages as unneeded. Unlocking pages that are not locked fails, and takes
 * them out of the working set. */
void os_arena_discard(void *memory, size_t bytes) {
    SYSTEM_INFO system;
    GetSystemInfo(&system);
    size_t page = system.dwPageSize, address = (size_t)(uintptr_t)memory;
    size_t begin = (address + page - 1) / page * page, end = (address + bytes) / page * page;
    if (begin >= end)
        return;
    char *first = (char *)memory + (begin - address);
    if (VirtualAlloc(first, end - begin, MEM_RESET, PAGE_READWRITE))
        (void)VirtualUnlock(first, end - begin);
}

int os_arena_offer(void *memory, size_t bytes) {
    return bytes >= RESERVED_UNIT && VirtualAlloc(memory, bytes, MEM_RESET, PAGE_READWRITE) != NULL;
}

void *os_aligned_alloc(size_t bytes) {
    if (bytes > SIZE_MAX - 2 * OS_CACHE_LINE)
        return NULL;
    return _aligned_malloc(bytes ? bytes : 1, OS_CACHE_LINE);
}

void os_aligned_free(void *memory) { _aligned_free(memory); }

/* ---- threads ---- */

typedef struct {
    void (*function)(void *);
    void *argument;
} thread_start;

/* Windows may run threads of a program in the background slowly, on efficiency cores. All threads
 * wait for the slowest at each barrier. So this asks Windows not to slow the calling thread down.
 * Old versions refuse. */
static void forbid_power_throttling(void) {
    THREAD_POWER_THROTTLING_STATE state = {
        .Version = THREAD_POWER_THROTTLING_CURRENT_VERSION,
        .ControlMask = THREAD_POWER_THROTTLING_EXECUTION_SPEED,
        .StateMask = 0, /* off */
    };
    (void)SetThreadInformation(GetCurrentThread(), ThreadPowerThrottling, &state, sizeof state);
}

static DWORD WINAPI run_thread(void *argument) {
    thread_start start = *(thread_start *)argument;
    free(argument);
    forbid_power_throttling();
    start.function(start.argument);
    return 0;
}

int os_start_thread(void (*function)(void *), void *argument) {
    thread_start *start = malloc(sizeof *start);
    if (!start)
        return 0;
    *start = (thread_start){function, argument};
    HANDLE thread = CreateThread(NULL, 0, run_thread, start, 0, NULL);
    if (!thread) {
        free(start);
        return 0;
    }
    CloseHandle(thread);
    return 1;
}

void os_after_fork_in_child(void (*function)(void)) { (void)function; }

/* ---- locks ---- */

/* os.h declares os_lock as a structure like SRWLOCK, so that it need not include windows.h. */
_Static_assert(sizeof(os_lock) == sizeof(SRWLOCK), "os_lock has the size of SRWLOCK");

static SRWLOCK *srw_lock(os_lock *lock) { return (SRWLOCK *)(void *)lock; }

void os_lock_take(os_lock *lock) { AcquireSRWLockExclusive(srw_lock(lock)); }

void os_lock_release(os_lock *lock) { ReleaseSRWLockExclusive(srw_lock(lock)); }

int os_lock_try(os_lock *lock) { return TryAcquireSRWLockExclusive(srw_lock(lock)); }

/* ---- sleep ---- */

/* Found when the library is loaded, because each compiler's library for them has another name
 * (synchronization, api-ms-win-core-synch-l1-2-0). */
static struct {
    BOOL(WINAPI *wait)(volatile VOID *, VOID *, SIZE_T, DWORD); /* WaitOnAddress */
    VOID(WINAPI *wake_all)(VOID *);                             /* WakeByAddressAll */
} address_functions;

__attribute__((constructor)) static void find_address_functions(void) {
    HMODULE library = GetModuleHandleW(L"kernelbase.dll");
    FARPROC wait = GetProcAddress(library, "WaitOnAddress"),
            wake_all = GetProcAddress(library, "WakeByAddressAll");
    memcpy(&address_functions.wait, &wait, sizeof wait);
    memcpy(&address_functions.wake_all, &wake_all, sizeof wake_all);
}

void os_sleep_while(atomic_uint *word, unsigned old) {
    address_functions.wait((volatile VOID *)word, &old, sizeof old, INFINITE);
}

/* Longer waits are cut to this time, so that milliseconds do not overflow. */
#define MAX_SLEEP_SECONDS 1e6

/* Rounds up to milliseconds. Windows wakes sleepers at its clock's ticks, by default every
 * 15.6 ms. */
void os_sleep_while_for(atomic_uint *word, unsigned old, double seconds) {
    seconds = seconds > 0 ? seconds : 0;
    seconds = seconds < MAX_SLEEP_SECONDS ? seconds : MAX_SLEEP_SECONDS;
    DWORD milliseconds = (DWORD)(1e3 * seconds + 0.999);
    address_functions.wait((volatile VOID *)word, &old, sizeof old, milliseconds);
}

void os_wake_all(atomic_uint *word) { address_functions.wake_all((VOID *)word); }

/* ---- clocks ---- */

static int64_t clock_ticks(void) {
    LARGE_INTEGER now;
    QueryPerformanceCounter(&now);
    return now.QuadPart;
}

static double seconds_of(int64_t ticks) {
    LARGE_INTEGER frequency;
    QueryPerformanceFrequency(&frequency);
    return (double)ticks / (double)frequency.QuadPart;
}

double os_seconds(void) { return seconds_of(clock_ticks()); }

#if defined(__x86_64__)
/* GetThreadTimes counts whole clock ticks of 15.6 ms, longer than most passes. On x86-64
 * QueryThreadCycleTime counts cycles of the time stamp counter, which runs at a constant rate. */
static struct {
    uint64_t cycles;
    int64_t ticks;
} at_load;

__attribute__((constructor)) static void read_clocks_at_load(void) {
    at_load.cycles = __rdtsc();
    at_load.ticks = clock_ticks();
}

double os_thread_seconds(void) {
    ULONG64 cycles;
    int64_t ticks = clock_ticks();
    if (!QueryThreadCycleTime(GetCurrentThread(), &cycles))
        return seconds_of(ticks);
    return (double)cycles * seconds_of(ticks - at_load.ticks) /
           (double)(__rdtsc() - at_load.cycles);
}
#else
/* GetThreadTimes counts whole clock ticks of 15.6 ms, longer than most passes. The cycles of
 * QueryThreadCycleTime have no constant rate on AArch64. */
double os_thread_seconds(void) { return os_seconds(); }
#endif
