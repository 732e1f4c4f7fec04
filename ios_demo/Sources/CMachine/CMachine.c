// Memory as Apple's systems and Linux tell it: in C, for Swift takes the task's port for a variable that threads share.
#include "CMachine.h"

#if defined(__APPLE__)

#include <TargetConditionals.h>
#include <mach/mach.h>
#if TARGET_OS_IPHONE
#include <os/proc.h>
#endif

static int told(task_vm_info_data_t *info) {
    mach_msg_type_number_t count = TASK_VM_INFO_COUNT;
    return task_info(mach_task_self(), TASK_VM_INFO, (task_info_t)info, &count) == KERN_SUCCESS;
}

int64_t machine_available_memory(void) {
#if TARGET_OS_IPHONE && !TARGET_OS_MACCATALYST && !TARGET_OS_SIMULATOR
    return (int64_t)os_proc_available_memory();
#else
    return -1;
#endif
}

int64_t machine_memory(void) {
    task_vm_info_data_t info;
    return told(&info) ? (int64_t)info.phys_footprint : -1;
}

int64_t machine_peak_memory(void) {
    task_vm_info_data_t info;
    return told(&info) ? info.ledger_phys_footprint_peak : -1;
}

#else

#include <stdio.h>
#include <string.h>

static int64_t field(const char *path, const char *name) {
    FILE *file = fopen(path, "r");
    if (file == NULL) return -1;
    char line[256];
    long long found = -1;
    while (found < 0 && fgets(line, sizeof line, file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0 && sscanf(line + strlen(name), "%lld", &found) != 1) found = -1;
    fclose(file);
    return found < 0 ? -1 : found * 1024;
}

int64_t machine_available_memory(void) { return field("/proc/meminfo", "MemAvailable:"); }

int64_t machine_memory(void) { return field("/proc/self/status", "VmRSS:"); }

int64_t machine_peak_memory(void) { return field("/proc/self/status", "VmHWM:"); }

#endif
