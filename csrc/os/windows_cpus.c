/* The CPUs of Windows 10 and later, which numbers them in groups of up to 64. */
#undef _WIN32_WINNT
#define _WIN32_WINNT 0x0A00 /* declare what Windows 10 has */
#define WIN32_LEAN_AND_MEAN
#include "os/os.h"

#include <windows.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#define MAX_GROUPS 64

/* Finds the CPUs that the threads of this process may run on. Since Windows 11 a process has all
 * groups. On older versions it has one, and so at most 64 CPUs. Windows does not tell the affinity
 * within each of several groups: a program that sets it has the process in one group. */
static void find_allowed_cpus(KAFFINITY masks[MAX_GROUPS]) {
    HANDLE process = GetCurrentProcess();
    USHORT groups[MAX_GROUPS], n_groups = MAX_GROUPS;
    memset(masks, 0, MAX_GROUPS * sizeof *masks);
    if (!GetProcessGroupAffinity(process, &n_groups, groups)) {
        n_groups = 1; /* as in Wine, which knows one group */
        groups[0] = 0;
    }
    for (int i = 0; i < n_groups; i++) {
        DWORD n_cpus = GetActiveProcessorCount(groups[i]);
        if (groups[i] < MAX_GROUPS && n_cpus > 0)
            masks[groups[i]] = ~(KAFFINITY)0 >> (64 - n_cpus);
    }
    DWORD_PTR allowed, existing;
    if (n_groups == 1 && groups[0] < MAX_GROUPS &&
        GetProcessAffinityMask(process, &allowed, &existing) && allowed)
        masks[groups[0]] = allowed;
}

int os_n_cpus(void) {
    KAFFINITY masks[MAX_GROUPS];
    int n = 0;
    find_allowed_cpus(masks);
    for (int i = 0; i < MAX_GROUPS; i++)
        n += __builtin_popcountll(masks[i]);
    return n > 0 ? n : INT_MAX;
}

typedef SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX core_record;

/* Returns the records of all cores, and their size in bytes; NULL if that fails. The caller frees
 * them. */
static char *read_cores(DWORD *n_bytes) {
    *n_bytes = 0;
    GetLogicalProcessorInformationEx(RelationProcessorCore, NULL, n_bytes);
    char *records = malloc(*n_bytes ? *n_bytes : 1);
    if (records && !GetLogicalProcessorInformationEx(RelationProcessorCore,
                                                     (core_record *)(void *)records, n_bytes)) {
        free(records);
        return NULL;
    }
    return records;
}

static int is_allowed(const core_record *core, const KAFFINITY masks[MAX_GROUPS]) {
    GROUP_AFFINITY cpus = core->Processor.GroupMask[0]; /* a core's CPUs are all in one group */
    return cpus.Group < MAX_GROUPS && (cpus.Mask & masks[cpus.Group]) != 0;
}

/* The allowed cores, and those among them that are fastest: of the highest efficiency class. */
typedef struct {
    int n, n_fastest;
} core_count;

static core_count count_cores(void) {
    KAFFINITY masks[MAX_GROUPS];
    core_count count = {0, 0};
    int highest = -1;
    DWORD n_bytes;
    find_allowed_cpus(masks);
    char *records = read_cores(&n_bytes);
    for (DWORD i = 0; records && i < n_bytes;) {
        const core_record *core = (const core_record *)(void *)(records + i);
        i += core->Size;
        if (!is_allowed(core, masks))
            continue;
        int class = core->Processor.EfficiencyClass;
        count.n++;
        if (class > highest)
            count.n_fastest = 0;
        highest = class > highest ? class : highest;
        count.n_fastest += class == highest;
    }
    free(records);
    return count;
}

int os_physical_cores(void) { return count_cores().n; }

int os_performance_cores(void) {
    core_count cores = count_cores();
    return cores.n_fastest < cores.n ? cores.n_fastest : 0;
}

/* Windows limits a container by its job object: to a rate, in 1/10,000 of all CPUs. If jobs are
 * nested, this sees the innermost one. */
double os_cpu_quota(void) {
    JOBOBJECT_CPU_RATE_CONTROL_INFORMATION rate;
    if (!QueryInformationJobObject(NULL, JobObjectCpuRateControlInformation, &rate, sizeof rate,
                                   NULL) ||
        !(rate.ControlFlags & JOB_OBJECT_CPU_RATE_CONTROL_ENABLE))
        return 0;
    double cpus = (double)GetActiveProcessorCount(ALL_PROCESSOR_GROUPS) / 1e4;
    if (rate.ControlFlags & JOB_OBJECT_CPU_RATE_CONTROL_MIN_MAX_RATE)
        return (rate.CpuRate >> 16) * cpus; /* MaxRate, which old headers do not declare */
    return rate.ControlFlags & JOB_OBJECT_CPU_RATE_CONTROL_HARD_CAP ? rate.CpuRate * cpus : 0;
}

#if defined(__aarch64__)
/* The SDKs of old Windows define neither number, and such a Windows says no. */
#if !defined(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE)
#define PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE 43
#endif
#if !defined(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE)
#define PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE 66
#endif

int os_has_dot_product(void) {
    return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE);
}

int os_has_int8_matrices(void) {
    return IsProcessorFeaturePresent(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE);
}
#endif
