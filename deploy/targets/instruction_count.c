/* A QEMU user-mode plugin that counts guest instructions.
 *
 * A guest marks a moment by the system call MARKER_SYSCALL with a tag as its argument; no kernel
 * has that call, so it fails and changes nothing. At each marker the plugin writes one line to
 * QEMU's plugin log (-d plugin -D FILE): "instructions TAG COUNT", where COUNT is what all the
 * guest's processors have executed since the process began.
 *
 * QEMU's plugin header is in no binary package: the entry points in use, which have kept their
 * form since version 1 of the interface, are declared here.
 *
 *   cc -O2 -shared -fPIC -DMARKER_SYSCALL=N -DPLUGIN_INTERFACE=1 -o instruction_count.so FILE
 */
#include <inttypes.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifndef MARKER_SYSCALL
#error "define MARKER_SYSCALL, the number that edge_runner.py calls"
#endif
#ifndef PLUGIN_INTERFACE
#define PLUGIN_INTERFACE 1
#endif
#define VISIBLE __attribute__((visibility("default")))

typedef uint64_t plugin_id;
struct qemu_plugin_tb;
typedef void (*block_translated)(plugin_id id, struct qemu_plugin_tb *block);
typedef void (*block_entered)(unsigned int processor, void *data);
typedef void (*syscall_entered)(plugin_id id, unsigned int processor, int64_t number, uint64_t a1,
                                uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                                uint64_t a7, uint64_t a8);

size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *block);
void qemu_plugin_outs(const char *text);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id id, block_translated callback);
void qemu_plugin_register_vcpu_tb_exec_cb(struct qemu_plugin_tb *block, block_entered callback,
                                          int registers, void *data);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id id, syscall_entered callback);

VISIBLE int qemu_plugin_version = PLUGIN_INTERFACE;

/* Guest threads count apart, each on a cache line of its own, and need no lock. More than
 * PROCESSORS of them share lines and may lose counts. */
#define PROCESSORS 256
#define NO_REGISTERS 0
static struct {
    uint64_t instructions;
    char padding[56];
} counted[PROCESSORS];

static void enter_block(unsigned int processor, void *data)
{
    counted[processor % PROCESSORS].instructions += (uintptr_t)data;
}

static void translate_block(plugin_id id, struct qemu_plugin_tb *block)
{
    (void)id;
    qemu_plugin_register_vcpu_tb_exec_cb(block, enter_block, NO_REGISTERS,
                                         (void *)(uintptr_t)qemu_plugin_tb_n_insns(block));
}

static void enter_syscall(plugin_id id, unsigned int processor, int64_t number, uint64_t tag,
                          uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5, uint64_t a6,
                          uint64_t a7, uint64_t a8)
{
    char line[80];
    uint64_t sum = 0;

    (void)id, (void)processor, (void)a2, (void)a3, (void)a4, (void)a5, (void)a6, (void)a7, (void)a8;
    if (number != MARKER_SYSCALL)
        return;
    for (size_t i = 0; i < PROCESSORS; i++)
        sum += counted[i].instructions;
    snprintf(line, sizeof line, "instructions %" PRIu64 " %" PRIu64 "\n", tag, sum);
    qemu_plugin_outs(line);
}

VISIBLE int qemu_plugin_install(plugin_id id, const void *information, int count, char **arguments)
{
    (void)information, (void)count, (void)arguments;
    qemu_plugin_register_vcpu_tb_trans_cb(id, translate_block);
    qemu_plugin_register_vcpu_syscall_cb(id, enter_syscall);
    return 0;
}
