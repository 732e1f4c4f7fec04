/* Plugin of qemu-user (API 1): how many instructions a guest has run, written to a file whenever it asks.
 *
 * It asks by getpgid(0x7eed), of a process that there is none of. What is declared here is in qemu-plugin.h, which Debian
 * does not ship. One thread of the guest computes: the counter is not shared between several.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

typedef uint64_t Id;
struct qemu_plugin_tb;
struct qemu_info_t;
int qemu_plugin_version = 1;

void qemu_plugin_register_vcpu_tb_trans_cb(Id, void (*)(Id, struct qemu_plugin_tb *));
void qemu_plugin_register_vcpu_syscall_cb(Id, void (*)(Id, unsigned, int64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                       uint64_t, uint64_t, uint64_t, uint64_t));
void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *, int, void *, uint64_t);
size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);

enum { ADD = 0, GETPGID = 155, ASKED = 0x7eed };

static uint64_t count;
static FILE *counts;

static void translated(Id id, struct qemu_plugin_tb *block) {
  qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &count, qemu_plugin_tb_n_insns(block));
}

static void called(Id id, unsigned cpu, int64_t number, uint64_t process, uint64_t b, uint64_t c, uint64_t d, uint64_t e,
                   uint64_t f, uint64_t g, uint64_t h) {
  if (number != GETPGID || process != ASKED) return;
  fprintf(counts, "%" PRIu64 "\n", count);
  fflush(counts);
}

int qemu_plugin_install(Id id, const struct qemu_info_t *info, int argc, char **argv) {
  const char *name = "counts=";
  if (argc != 1 || strncmp(argv[0], name, strlen(name)) || !(counts = fopen(argv[0] + strlen(name), "w"))) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  qemu_plugin_register_vcpu_syscall_cb(id, called);
  return 0;
}
