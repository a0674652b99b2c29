/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * ringload: a virtio-blk driver without a guest.
 *
 * Starts a QEMU with the qtest accelerator and guest RAM in a memfd, sets up
 * virtio-blk-pci through the qtest protocol as a guest's driver would, and then
 * works the split virtqueues in the shared memory.  Nothing is emulated in
 * between, so the IOThread is what limits the speed.  Prints one JSON object.
 *
 * Two threads of QEMU matter: the IOThread, which does the I/O, and the main
 * thread.  Without KVM there is no irqfd: the eventfd that the IOThread writes
 * to interrupt the guest wakes the main thread, which then writes the MSI
 * message, to an address in guest RAM where this program sees it.  With
 * --irqfd on the main thread is stopped instead once all is set up, and this
 * program takes the interrupts from the eventfds, as KVM does.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <linux/fs.h>
#include <linux/pci_regs.h>
#include <linux/perf_event.h>
#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_pci.h>
#include <linux/virtio_ring.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <time.h>
#include <unistd.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "modern virtio is little endian, and so is this program"
#endif

enum { MAX_QUEUES = 64, MAX_QD = 1024, SECTOR = 512, MAX_QEMU_ARGS = 32 };
enum irq { IRQ_EACH, IRQ_BATCH, IRQ_OFF };
enum wait_for { WAIT_USED, WAIT_IRQ };
enum kick { KICK_EVENTFD, KICK_QTEST };

#define NS 1000000000ull
#define TURN_WARMUP 0.003          /* seconds; caches and the branch predictor know the others */
#define RAM_START (16ull << 20)         /* above what a PC has below 1 MiB */
#define RAM_MOST (2ull << 30)           /* in one piece from address 0 on a PC */
#define BAR_START 0xe0000000ull         /* the PCI hole of i440fx and q35 */

static struct {
    const char *qemu, *image, *machine, *aio;
    const char *qemu_arg[MAX_QEMU_ARGS];
    unsigned qemu_args;
    bool cache_direct, event_idx, indirect, irqfd, jitter, fill;
    unsigned qd, queues, batch, bs, write_percent, turns;
    double seconds, warmup, count_seconds, timeout;
    enum irq irq;
    enum wait_for wait;
    enum kick kick;
    uint64_t reaction_ns, poll_max_ns, verify_blocks, min_ios, seed, pattern_seed;
    int iothread_cpu, main_cpu, driver_cpu;
} opt = {
    .machine = "pc-i440fx-7.2", .aio = "native", .cache_direct = true, .event_idx = true,
    .indirect = true, .qd = 64, .queues = 1, .batch = 64, .bs = 4096, .seconds = 2,
    .warmup = 0.5, .count_seconds = 0.5, .timeout = 10, .reaction_ns = 1000, .verify_blocks = 4096, .min_ios = 1,
    .iothread_cpu = -1, .main_cpu = -1, .driver_cpu = -1, .seed = 1,
};

static pid_t qemu_pid, iothread_tid;
static int qtest_fd = -1, qmp_fd = -1, stderr_fd = -1;

/* -- ending, always with QEMU ----------------------------------------------- */

static void end_qemu(void)
{
    if (qemu_pid > 0) {
        pid_t ended;

        kill(qemu_pid, SIGKILL);
        /* a traced thread has to be waited for before its process */
        do {
            ended = waitpid(-1, NULL, __WALL);
        } while (ended != qemu_pid && (ended > 0 || errno == EINTR));
        qemu_pid = 0;
    }
}

static int die_status = EXIT_FAILURE;

__attribute__((noreturn, format(printf, 1, 2))) static void die(const char *format, ...)
{
    va_list ap;

    fputs("ringload: ", stderr);
    va_start(ap, format);
    vfprintf(stderr, format, ap);
    va_end(ap);
    fputc('\n', stderr);
    end_qemu();
    exit(die_status);
}

/* The peer has gone: say what QEMU said last, in one line. */
__attribute__((noreturn)) static void die_of_qemu(void)
{
    char text[4096], *line, *last = NULL, *save;
    int status = 0;
    ssize_t n;

    if (qemu_pid > 0) {
        /* it may have closed its sockets just before its end */
        for (int i = 0; i < 100 && waitpid(qemu_pid, &status, WNOHANG) == 0; i++) {
            usleep(10000);
        }
    }
    n = pread(stderr_fd, text, sizeof(text) - 1, 0);
    text[n > 0 ? n : 0] = 0;
    for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        /* the first complaint, unless only warnings came */
        if (!last || (strstr(last, "warning:") && !strstr(line, "warning:"))) {
            last = line;
        }
    }
    if (!last && WIFSIGNALED(status)) {
        die("%s was ended by signal %d", opt.qemu, WTERMSIG(status));
    }
    die("%s ended: %s", opt.qemu, last ? last : "it said nothing");
}

static void on_signal(int number)
{
    /* a blocked read of the set-up or a spinning driver: end here in both cases */
    if (qemu_pid > 0) {
        kill(qemu_pid, SIGKILL);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static uint64_t now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS + t.tv_nsec;
}

/* -- the pattern in the image ----------------------------------------------- */

static inline uint64_t mix64(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

/* Each sector differs from every other, and from the same one with another seed. */
static void pattern(void *buffer, uint64_t sector, unsigned sectors)
{
    uint64_t *p = buffer;

    for (unsigned s = 0; s < sectors; s++, sector++) {
        uint64_t x = mix64(mix64(opt.pattern_seed) ^ sector);

        for (unsigned i = 0; i < SECTOR / 8; i++) {
            *p++ = x += 0x9e3779b97f4a7c15ull;
        }
    }
}

/* The first sector that differs, or -1. */
static int64_t pattern_differs(const void *buffer, uint64_t sector, unsigned sectors)
{
    uint64_t expected[SECTOR / 8];

    for (unsigned s = 0; s < sectors; s++) {
        pattern(expected, sector + s, 1);
        if (memcmp((const char *)buffer + s * SECTOR, expected, SECTOR)) {
            return sector + s;
        }
    }
    return -1;
}

static uint64_t image_size(void)
{
    struct stat st;
    uint64_t size = 0;
    int fd = open(opt.image, O_RDONLY | O_CLOEXEC);

    if (fd < 0 || fstat(fd, &st)) {
        die("--image %s: %s", opt.image, strerror(errno));
    }
    if (S_ISBLK(st.st_mode)) {
        ioctl(fd, BLKGETSIZE64, &size);
    } else if (S_ISREG(st.st_mode)) {
        size = st.st_size;
    } else {
        die("--image %s: neither a file nor a block device", opt.image);
    }
    close(fd);
    if (size < opt.bs || size < 1 << 20) {
        die("--image %s: smaller than 1 MiB or one block", opt.image);
    }
    return size / SECTOR * SECTOR;
}

/* Write the pattern over the whole image; the file has its size already. */
static void fill_image(void)
{
    uint64_t size = image_size(), done = 0;
    int fd = open(opt.image, O_WRONLY | O_CLOEXEC);
    static char buffer[1 << 20];

    if (fd < 0) {
        die("--image %s: %s", opt.image, strerror(errno));
    }
    while (done < size) {
        size_t n = size - done < sizeof(buffer) ? size - done : sizeof(buffer);

        pattern(buffer, done / SECTOR, n / SECTOR);
        if (pwrite(fd, buffer, n, done) != (ssize_t)n) {
            die("--image %s: cannot be written: %s", opt.image, strerror(errno));
        }
        done += n;
    }
    if (fsync(fd) || close(fd)) {
        die("--image %s: %s", opt.image, strerror(errno));
    }
}

/* -- qtest and QMP, both lines of text --------------------------------------- */

/* Read one line, without its end; what follows it stays for the next call. */
static char *read_line(int fd)
{
    static struct buffer { char text[65536]; size_t n, taken; } buffers[2];
    struct buffer *b = &buffers[fd == qmp_fd];
    char *end;

    memmove(b->text, b->text + b->taken, b->n - b->taken);
    b->n -= b->taken;
    while (!(end = memchr(b->text, '\n', b->n))) {
        ssize_t n = b->n < sizeof(b->text) ? read(fd, b->text + b->n, sizeof(b->text) - b->n) : 0;

        if (n <= 0) {
            die_of_qemu();
        }
        b->n += n;
    }
    *end = 0;
    b->taken = end + 1 - b->text;
    return b->text;
}

static void send_text(int fd, const char *text)
{
    size_t n = strlen(text);

    while (n) {
        ssize_t sent = send(fd, text, n, MSG_NOSIGNAL);

        if (sent <= 0) {
            die_of_qemu();
        }
        text += sent;
        n -= sent;
    }
}

__attribute__((format(printf, 1, 2))) static uint64_t qtest(const char *format, ...)
{
    char text[128];
    const char *answer;
    va_list ap;

    va_start(ap, format);
    vsnprintf(text, sizeof(text) - 1, format, ap);
    va_end(ap);
    strcat(text, "\n");
    send_text(qtest_fd, text);
    do {
        answer = read_line(qtest_fd);
    } while (!strncmp(answer, "IRQ", 3));
    if (strncmp(answer, "OK", 2)) {
        die("qtest answers \"%s\" to %.*s", answer, (int)strcspn(text, "\n"), text);
    }
    return strtoull(answer + 2, NULL, 0);
}

static const char *qmp(const char *command)
{
    const char *answer;

    send_text(qmp_fd, command);
    send_text(qmp_fd, "\n");
    do {
        answer = read_line(qmp_fd);
    } while (!strstr(answer, "\"return\"") && !strstr(answer, "\"error\""));
    if (strstr(answer, "\"error\"")) {
        die("QMP answers %.300s", answer);
    }
    return answer;
}

/* -- starting QEMU ----------------------------------------------------------- */

static uint8_t *ram;                /* guest RAM, address 0 at [0] */
static uint64_t ram_size, ram_used = RAM_START;

static uint64_t ram_alloc(uint64_t size, uint64_t align)
{
    uint64_t at = (ram_used + align - 1) / align * align;

    ram_used = at + size;
    if (ram_used > ram_size) {
        die("--qd, --queues and --bs need more than the %llu MiB of RAM that a guest gets here",
            (unsigned long long)(ram_size >> 20));
    }
    return at;
}

static int memory_file(const char *name, uint64_t size)
{
    int fd = memfd_create(name, 0);     /* stays open in QEMU, which opens it by its number */

    if (fd < 0 || ftruncate(fd, size)) {
        die("memfd_create: %s", strerror(errno));
    }
    return fd;
}

static void json_string(char *to, size_t room, const char *from)
{
    size_t n = 0;

    for (; *from; from++) {
        if ((unsigned char)*from < 0x20 || n + 3 > room) {
            die("--image: control characters in the name, or too long");
        }
        if (*from == '"' || *from == '\\') {
            to[n++] = '\\';
        }
        to[n++] = *from;
    }
    to[n] = 0;
}

static unsigned queue_size(void)
{
    unsigned size = 256, need = opt.qd * (opt.indirect ? 1 : 3);

    while (size < need) {
        size *= 2;
    }
    return size;
}

static void start_qemu(void)
{
    int ram_fd, bios_fd, sockets[2][2];
    const char *argv[64 + MAX_QEMU_ARGS];
    unsigned n = 0;
    pid_t parent = getpid();
    struct stat st;
    char text[9][PATH_MAX * 2 + 256], name[PATH_MAX * 2];
    /* each slot: a line each of header and status, of an indirect table; data; and some for the rings */
    uint64_t need = RAM_START + (uint64_t)opt.qd * opt.queues * (opt.bs + 4096 + 128) +
        opt.queues * 65536ull;

    ram_size = (need + (16 << 20)) >> 20 << 20;
    if (ram_size > RAM_MOST) {
        die("--qd, --queues and --bs need %llu MiB of guest RAM; at most %llu are possible",
            (unsigned long long)(ram_size >> 20), RAM_MOST >> 20);
    }
    if (access(opt.qemu, X_OK)) {
        die("--qemu %s: %s", opt.qemu, strerror(errno));
    }
    ram_fd = memory_file("guest-ram", ram_size);
    ram = mmap(NULL, ram_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ram_fd, 0);
    if (ram == MAP_FAILED) {
        die("mmap of %llu MiB: %s", (unsigned long long)(ram_size >> 20), strerror(errno));
    }
    bios_fd = memory_file("no-bios", 65536);    /* no processor ever runs it */
    stderr_fd = memory_file("qemu-stderr", 0);
    for (int i = 0; i < 2; i++) {
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets[i])) {
            die("socketpair: %s", strerror(errno));
        }
        fcntl(sockets[i][0], F_SETFD, FD_CLOEXEC);
    }
    qtest_fd = sockets[0][0];
    qmp_fd = sockets[1][0];

    stat(opt.image, &st);
    json_string(name, sizeof(name), opt.image);
    snprintf(text[0], sizeof(text[0]), "%s,memory-backend=ram", opt.machine);
    snprintf(text[1], sizeof(text[1]), "memory-backend-file,id=ram,share=on,size=%llu,mem-path=/proc/self/fd/%d",
             (unsigned long long)ram_size, ram_fd);
    snprintf(text[2], sizeof(text[2]), "%lluM", (unsigned long long)(ram_size >> 20));
    snprintf(text[3], sizeof(text[3]), "/proc/self/fd/%d", bios_fd);
    snprintf(text[4], sizeof(text[4]), "socket,id=qtest,fd=%d", sockets[0][1]);
    snprintf(text[5], sizeof(text[5]), "socket,id=qmp0,fd=%d", sockets[1][1]);
    snprintf(text[6], sizeof(text[6]),
             "{\"driver\":\"%s\",\"node-name\":\"file0\",\"filename\":\"%s\",\"aio\":\"%s\","
             "\"read-only\":%s,\"cache\":{\"direct\":%s}}", S_ISBLK(st.st_mode) ? "host_device" : "file",
             name, opt.aio, opt.write_percent ? "false" : "true", opt.cache_direct ? "true" : "false");
    snprintf(text[7], sizeof(text[7]),
             "virtio-blk-pci,drive=disk0,iothread=iothread0,disable-legacy=on,num-queues=%u,queue-size=%u,"
             "event_idx=%s,indirect_desc=%s%s", opt.queues, queue_size(), opt.event_idx ? "on" : "off",
             opt.indirect ? "on" : "off",
             /* the others have the image open, too; all write the same pattern */
             opt.turns && opt.write_percent ? ",share-rw=on" : "");
    snprintf(text[8], sizeof(text[8]), "iothread,id=iothread0,poll-max-ns=%llu",
             (unsigned long long)opt.poll_max_ns);
    const char *fixed[] = {
        opt.qemu, "-accel", "qtest", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", text[0], "-object", text[1], "-m", text[2], "-bios", text[3],
        "-chardev", text[4], "-qtest", "chardev:qtest", "-qtest-log", "/dev/null",
        "-chardev", text[5], "-mon", "chardev=qmp0,mode=control",
        "-object", text[8],
        "-blockdev", text[6],
        "-blockdev", opt.write_percent ? "driver=raw,node-name=disk0,file=file0"
                                       : "driver=raw,node-name=disk0,file=file0,read-only=on",
        "-device", text[7],
    };
    for (unsigned i = 0; i < sizeof(fixed) / sizeof(fixed[0]); i++) {
        argv[n++] = fixed[i];
    }
    for (unsigned i = 0; i < opt.qemu_args; i++) {
        argv[n++] = opt.qemu_arg[i];
    }
    argv[n] = NULL;

    qemu_pid = fork();
    if (qemu_pid < 0) {
        die("fork: %s", strerror(errno));
    }
    if (qemu_pid == 0) {
        int null = open("/dev/null", O_RDWR);

        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) {
            _exit(1);
        }
        /* Ctrl-C is for us; we end QEMU */
        setpgid(0, 0);
        dup2(null, 0);
        dup2(null, 1);
        dup2(stderr_fd, 2);
        execv(opt.qemu, (char **)argv);
        dprintf(2, "%s: %s\n", opt.qemu, strerror(errno));
        _exit(127);
    }
    close(sockets[0][1]);
    close(sockets[1][1]);
    close(ram_fd);
    close(bios_fd);

    read_line(qmp_fd);          /* the greeting */
    qmp("{\"execute\":\"qmp_capabilities\"}");
    const char *tid = strstr(qmp("{\"execute\":\"query-iothreads\"}"), "\"thread-id\":");
    if (!tid || (iothread_tid = atoi(tid + strlen("\"thread-id\":"))) <= 0) {
        die("query-iothreads names no thread");
    }
}

static void pin(const char *what, pid_t tid, int cpu)
{
    cpu_set_t set;

    if (cpu < 0) {
        return;
    }
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(tid, sizeof(set), &set)) {
        die("cannot pin the %s to CPU %d: %s", what, cpu, strerror(errno));
    }
}

/* -- PCI --------------------------------------------------------------------- */

static unsigned pci_devfn;

static uint32_t pci_read(unsigned at, unsigned size)
{
    qtest("outl 0xcf8 0x%x", 1u << 31 | pci_devfn << 8 | (at & ~3u));
    return qtest("in%c 0x%x", size == 1 ? 'b' : size == 2 ? 'w' : 'l', 0xcfc + (at & 3));
}

static void pci_write(unsigned at, unsigned size, uint32_t value)
{
    qtest("outl 0xcf8 0x%x", 1u << 31 | pci_devfn << 8 | (at & ~3u));
    qtest("out%c 0x%x 0x%x", size == 1 ? 'b' : size == 2 ? 'w' : 'l', 0xcfc + (at & 3), value);
}

static struct {
    uint64_t common, notify, config, msix_table;
    uint32_t notify_multiplier;
    unsigned msix_cap;
} pci;

/* Give all memory BARs an address; fills bar[]. */
static void program_bars(uint64_t *bar)
{
    uint64_t next = BAR_START;

    for (int i = 0; i < 6; i++) {
        unsigned at = PCI_BASE_ADDRESS_0 + 4 * i;
        uint32_t low, size;
        bool wide;

        pci_write(at, 4, ~0u);
        low = pci_read(at, 4);
        if (!low || low & PCI_BASE_ADDRESS_SPACE_IO) {
            continue;
        }
        wide = (low & PCI_BASE_ADDRESS_MEM_TYPE_MASK) == PCI_BASE_ADDRESS_MEM_TYPE_64;
        size = ~(low & ~0xfu) + 1;
        next = (next + size - 1) / size * size;
        bar[i] = next;
        next += size;
        pci_write(at, 4, bar[i]);
        if (wide) {
            pci_write(at + 4, 4, bar[i] >> 32);
            i++;
        }
    }
}

static void find_device(void)
{
    uint64_t bar[6] = { 0 };
    unsigned cap, command;

    for (pci_devfn = 0; ; pci_devfn += 8) {
        if (pci_devfn > 0xff) {
            die("no modern virtio-blk device on PCI bus 0 of this machine");
        }
        if (pci_read(PCI_VENDOR_ID, 4) == ((0x1040u + VIRTIO_ID_BLOCK) << 16 | 0x1af4)) {
            break;
        }
    }
    program_bars(bar);
    for (cap = pci_read(PCI_CAPABILITY_LIST, 1); cap; cap = pci_read(cap + PCI_CAP_LIST_NEXT, 1)) {
        unsigned id = pci_read(cap, 1);

        if (id == PCI_CAP_ID_MSIX) {
            uint32_t table = pci_read(cap + PCI_MSIX_TABLE, 4);

            pci.msix_cap = cap;
            pci.msix_table = bar[table & PCI_MSIX_TABLE_BIR] + (table & PCI_MSIX_TABLE_OFFSET);
        } else if (id == PCI_CAP_ID_VNDR) {
            unsigned b = pci_read(cap + offsetof(struct virtio_pci_cap, bar), 1);
            uint64_t at = (b < 6 ? bar[b] : 0) + pci_read(cap + offsetof(struct virtio_pci_cap, offset), 4);

            switch (pci_read(cap + offsetof(struct virtio_pci_cap, cfg_type), 1)) {
            case VIRTIO_PCI_CAP_COMMON_CFG:
                pci.common = at;
                break;
            case VIRTIO_PCI_CAP_DEVICE_CFG:
                pci.config = at;
                break;
            case VIRTIO_PCI_CAP_NOTIFY_CFG:
                pci.notify = at;
                pci.notify_multiplier =
                    pci_read(cap + offsetof(struct virtio_pci_notify_cap, notify_off_multiplier), 4);
                break;
            }
        }
    }
    if (!pci.common || !pci.config || !pci.notify || !pci.msix_cap) {
        die("the virtio-blk device lacks a capability that a modern one with MSI-X has");
    }
    command = pci_read(PCI_COMMAND, 2);
    pci_write(PCI_COMMAND, 2, command | PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_INTX_DISABLE);
}

#define COMMON(field) (pci.common + offsetof(struct virtio_pci_common_cfg, field))

static void write_address(uint64_t register_low, uint64_t value)
{
    qtest("writel 0x%llx 0x%x", (unsigned long long)register_low, (uint32_t)value);
    qtest("writel 0x%llx 0x%x", (unsigned long long)register_low + 4, (uint32_t)(value >> 32));
}

/* -- the queues -------------------------------------------------------------- */

struct slot {
    struct virtio_blk_outhdr *header;
    struct vring_desc *data_desc;
    uint8_t *data;
    volatile uint8_t *status;
    uint64_t submitted;
};

struct queue {
    struct vring vring;
    unsigned index, in_flight;
    uint16_t avail, last_used;      /* both run freely */
    uint16_t considered;            /* avail when a kick was last considered */
    uint32_t *msi;                  /* where the device's MSI message arrives */
    uint64_t notify_address;
    int kick_fd, irq_fd;            /* copies of QEMU's eventfds, or -1 */
    uint64_t react_at;              /* 0: has seen nothing that it has to react to */
    bool interrupted;
    bool going_on;                  /* left with work to do, for the other queues' sake */
    struct slot slot[MAX_QD];
    unsigned idle[MAX_QD], idles;   /* slots that carry no request */
};

static struct queue *queues;
static uint64_t blocks, features;

/* What is counted; the windows take differences. */
static struct counts {
    uint64_t done, writes, kicks, interrupts, batches, batch_max;
} count;

/* The driver's side of shared fields. */
#define load_acquire(p) __atomic_load_n(p, __ATOMIC_ACQUIRE)
#define store_release(p, v) __atomic_store_n(p, v, __ATOMIC_RELEASE)
#define store_relaxed(p, v) __atomic_store_n(p, v, __ATOMIC_RELAXED)
#define full_barrier() __atomic_thread_fence(__ATOMIC_SEQ_CST)

static inline bool used_pending(struct queue *q)
{
    return load_acquire(&q->vring.used->idx) != q->last_used;
}

/* Ask for an interrupt with the next used entry. */
static inline void arm(struct queue *q)
{
    if (opt.event_idx) {
        store_relaxed(&vring_used_event(&q->vring), q->last_used);
    } else {
        store_relaxed(&q->vring.avail->flags, 0);
    }
    full_barrier();     /* before used->idx is looked at again */
}

static void set_up_queue(struct queue *q, unsigned index)
{
    unsigned size = queue_size(), most;
    uint64_t rings, slots, data;

    qtest("writew 0x%llx %u", (unsigned long long)COMMON(queue_select), index);
    most = qtest("readw 0x%llx", (unsigned long long)COMMON(queue_size));
    if (most < size) {
        die("the device's queue %u has %u entries, %u needed", index, most, size);
    }
    q->index = index;
    q->kick_fd = q->irq_fd = -1;
    rings = ram_alloc(vring_size(size, 4096), 4096);
    vring_init(&q->vring, size, ram + rings, 4096);
    q->msi = (uint32_t *)(ram + ram_alloc(64, 64));
    slots = ram_alloc((uint64_t)opt.qd * 128, 128);
    data = ram_alloc((uint64_t)opt.qd * opt.bs, 4096);
    for (unsigned i = 0; i < opt.qd; i++) {
        uint64_t header = slots + i * 128, status = header + 16, table = header + 64;
        struct vring_desc *d = opt.indirect ? (void *)(ram + table) : &q->vring.desc[i * 3];
        unsigned first = opt.indirect ? 0 : i * 3;
        struct slot *s = &q->slot[i];

        *s = (struct slot) { (void *)(ram + header), d + 1, ram + data + (uint64_t)i * opt.bs, ram + status, 0 };
        d[0] = (struct vring_desc) { header, sizeof(*s->header), VRING_DESC_F_NEXT, first + 1 };
        d[1] = (struct vring_desc) { data + (uint64_t)i * opt.bs, opt.bs, 0, first + 2 };
        d[2] = (struct vring_desc) { status, 1, VRING_DESC_F_WRITE, 0 };
        if (opt.indirect) {
            q->vring.desc[i] = (struct vring_desc) { table, 3 * sizeof(*d), VRING_DESC_F_INDIRECT, 0 };
        }
        q->idle[q->idles++] = opt.qd - 1 - i;
    }
    if (opt.irq == IRQ_OFF) {
        /* with EVENT_IDX: an index that stays half a round away, see take() */
        q->vring.avail->flags = VRING_AVAIL_F_NO_INTERRUPT;
        vring_used_event(&q->vring) = 0x8000;
    }

    /* MSI-X entry index + 1 (0 is for configuration changes): a store to *q->msi */
    uint64_t entry = pci.msix_table + (index + 1) * PCI_MSIX_ENTRY_SIZE;
    write_address(entry + PCI_MSIX_ENTRY_LOWER_ADDR, (uint8_t *)q->msi - ram);
    qtest("writel 0x%llx 1", (unsigned long long)entry + PCI_MSIX_ENTRY_DATA);
    qtest("writel 0x%llx 0", (unsigned long long)entry + PCI_MSIX_ENTRY_VECTOR_CTRL);

    qtest("writew 0x%llx %u", (unsigned long long)COMMON(queue_size), size);
    qtest("writew 0x%llx %u", (unsigned long long)COMMON(queue_msix_vector), index + 1);
    if (qtest("readw 0x%llx", (unsigned long long)COMMON(queue_msix_vector)) != index + 1) {
        die("the device has no MSI-X vector for queue %u", index);
    }
    write_address(COMMON(queue_desc_lo), rings);
    write_address(COMMON(queue_avail_lo), (uint8_t *)q->vring.avail - ram);
    write_address(COMMON(queue_used_lo), (uint8_t *)q->vring.used - ram);
    q->notify_address = pci.notify + pci.notify_multiplier *
        qtest("readw 0x%llx", (unsigned long long)COMMON(queue_notify_off));
    qtest("writew 0x%llx 1", (unsigned long long)COMMON(queue_enable));
}

static void set_status(unsigned status)
{
    qtest("writeb 0x%llx %u", (unsigned long long)COMMON(device_status), status);
}

/* Everything of section 3.1 of the virtio specification except DRIVER_OK. */
static void set_up_device(void)
{
    uint64_t offered = 0, wanted = 1ull << VIRTIO_F_VERSION_1;
    unsigned status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER, vectors;

    find_device();
    set_status(0);
    set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE);
    set_status(status);
    for (unsigned i = 0; i < 2; i++) {
        qtest("writel 0x%llx %u", (unsigned long long)COMMON(device_feature_select), i);
        offered |= qtest("readl 0x%llx", (unsigned long long)COMMON(device_feature)) << 32 * i;
    }
    wanted |= opt.event_idx ? 1ull << VIRTIO_RING_F_EVENT_IDX : 0;
    wanted |= opt.indirect ? 1ull << VIRTIO_RING_F_INDIRECT_DESC : 0;
    wanted |= opt.queues > 1 ? 1ull << VIRTIO_BLK_F_MQ : 0;
    if ((offered & wanted) != wanted) {
        die("the device lacks features: it offers 0x%llx, 0x%llx are needed",
            (unsigned long long)offered, (unsigned long long)wanted);
    }
    features = wanted;
    for (unsigned i = 0; i < 2; i++) {
        qtest("writel 0x%llx %u", (unsigned long long)COMMON(guest_feature_select), i);
        qtest("writel 0x%llx 0x%x", (unsigned long long)COMMON(guest_feature), (uint32_t)(wanted >> 32 * i));
    }
    set_status(status |= VIRTIO_CONFIG_S_FEATURES_OK);
    if (!(qtest("readb 0x%llx", (unsigned long long)COMMON(device_status)) & VIRTIO_CONFIG_S_FEATURES_OK)) {
        die("the device does not accept the features 0x%llx", (unsigned long long)wanted);
    }
    blocks = qtest("readq 0x%llx", (unsigned long long)pci.config) * SECTOR / opt.bs;

    vectors = (pci_read(pci.msix_cap + PCI_MSIX_FLAGS, 2) & PCI_MSIX_FLAGS_QSIZE) + 1;
    if (vectors < opt.queues + 1) {
        die("the device has %u MSI-X vectors, %u needed", vectors, opt.queues + 1);
    }
    pci_write(pci.msix_cap + PCI_MSIX_FLAGS, 2, PCI_MSIX_FLAGS_ENABLE);
    queues = calloc(opt.queues, sizeof(*queues));
    if (!queues) {
        die("out of memory");
    }
    for (unsigned i = 0; i < opt.queues; i++) {
        set_up_queue(&queues[i], i);
    }
}

/* -- requests ---------------------------------------------------------------- */

static uint64_t random_state;

static inline uint64_t random64(void)
{
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return random_state * 0x2545f4914f6cdd1dull;
}

static void submit(struct queue *q, unsigned id, uint64_t block, bool write, uint64_t now)
{
    struct slot *s = &q->slot[id];
    uint64_t sector = block * (opt.bs / SECTOR);

    s->header->type = write ? VIRTIO_BLK_T_OUT : VIRTIO_BLK_T_IN;
    s->header->sector = sector;
    s->data_desc->flags = VRING_DESC_F_NEXT | (write ? 0 : VRING_DESC_F_WRITE);
    *s->status = 0xff;
    if (write) {
        pattern(s->data, sector, opt.bs / SECTOR);
    }
    s->submitted = now;
    q->vring.avail->ring[q->avail % q->vring.num] = opt.indirect ? id : id * 3;
    store_release(&q->vring.avail->idx, ++q->avail);
    q->in_flight++;
}

static void qtest_kick(struct queue *q)
{
    qtest("writew 0x%llx %u", (unsigned long long)q->notify_address, q->index);
}

static void kick(struct queue *q)
{
    static const uint64_t one = 1;

    count.kicks++;
    if (q->kick_fd < 0) {
        qtest_kick(q);
    } else if (write(q->kick_fd, &one, sizeof(one)) != sizeof(one)) {
        die("kick of queue %u: %s", q->index, strerror(errno));
    }
}

/* Kick if there is something new and the device asks for it. */
static void consider_kick(struct queue *q)
{
    bool wanted;

    if (q->considered == q->avail) {
        return;
    }
    full_barrier();     /* avail->idx is out before the device's wish is read */
    wanted = opt.event_idx
        ? vring_need_event(__atomic_load_n(&vring_avail_event(&q->vring), __ATOMIC_RELAXED),
                           q->avail, q->considered)
        : !(__atomic_load_n(&q->vring.used->flags, __ATOMIC_RELAXED) & VRING_USED_F_NO_NOTIFY);
    q->considered = q->avail;
    if (wanted) {
        kick(q);
    }
}

/* Take one used entry; returns its slot. */
static unsigned take(struct queue *q)
{
    struct vring_used_elem *e = &q->vring.used->ring[q->last_used % q->vring.num];
    unsigned id = opt.indirect ? e->id : e->id / 3;

    if (id >= opt.qd) {
        die("queue %u: the device returns descriptor %u, which is none of ours", q->index, e->id);
    }
    if (*q->slot[id].status != VIRTIO_BLK_S_OK) {
        die("queue %u: %s of sector %llu ends with status %u", q->index,
            q->slot[id].header->type == VIRTIO_BLK_T_OUT ? "write" : "read",
            (unsigned long long)q->slot[id].header->sector, *q->slot[id].status);
    }
    q->last_used++;
    q->in_flight--;
    if (opt.irq == IRQ_OFF && opt.event_idx && !(q->last_used & 0x3fff)) {
        store_relaxed(&vring_used_event(&q->vring), (uint16_t)(q->last_used + 0x8000));
    }
    return id;
}

static unsigned all_in_flight(void)
{
    unsigned n = 0;

    for (unsigned i = 0; i < opt.queues; i++) {
        n += queues[i].in_flight;
    }
    return n;
}

/* -- latencies: 64 steps to each power of two, so within 1 % ------------------- */

enum { BITS = 7, STEPS = 1 << BITS, BUCKETS = STEPS * 32 };
static uint64_t histogram[BUCKETS];
static uint64_t latency_sum, latency_least = UINT64_MAX, latency_most;

static inline void add_latency(uint64_t ns)
{
    unsigned top = ns < STEPS ? 0 : 64 - __builtin_clzll(ns) - BITS;   /* bits that are dropped */
    unsigned i = top ? top * (STEPS / 2) + (ns >> top) : ns;

    histogram[i < BUCKETS ? i : BUCKETS - 1]++;
    latency_sum += ns;
    latency_least = ns < latency_least ? ns : latency_least;
    latency_most = ns > latency_most ? ns : latency_most;
}

static double percentile_us(double p)
{
    uint64_t total = 0, seen = 0;

    for (unsigned i = 0; i < BUCKETS; i++) {
        total += histogram[i];
    }
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += histogram[i];
        if (seen && seen >= p * total) {
            unsigned top = i < STEPS ? 0 : i / (STEPS / 2) - 1;
            double low = top ? (double)((uint64_t)(i - top * (STEPS / 2)) << top) : i;

            double middle = low + (double)(1ull << top) / 2;

            return (middle < latency_most ? middle : latency_most) / 1000;
        }
    }
    return 0;
}

/* -- the driver's loop --------------------------------------------------------- */

/* What is to be done: blocks in order or at random, a number of them or without end. */
static struct {
    bool in_order, verify, endless, record;
    unsigned write_percent;
    uint64_t left, next;
} job;

static bool next_request(uint64_t *block, bool *write)
{
    if (!job.endless) {
        if (!job.left) {
            return false;
        }
        job.left--;
    }
    *block = job.in_order ? job.next++ % blocks : random64() % blocks;
    *write = job.write_percent && (job.write_percent == 100 || random64() % 100 < job.write_percent);
    return true;
}

static void finish(struct queue *q, unsigned id, uint64_t now)
{
    struct slot *s = &q->slot[id];
    bool write = s->header->type == VIRTIO_BLK_T_OUT;

    count.done++;
    count.writes += write;
    if (job.record) {
        add_latency(now - s->submitted);
    }
    if (job.verify && !write) {
        int64_t wrong = pattern_differs(s->data, s->header->sector, opt.bs / SECTOR);

        if (wrong >= 0) {
            die("data corruption: sector %lld was read with other content than it has to have "
                "(queue %u; if the image is not yours, fill it with --fill first)", (long long)wrong, q->index);
        }
    }
}

static void issue(struct queue *q, uint64_t now)
{
    uint64_t block;
    bool write;

    if (q->idles && next_request(&block, &write)) {
        submit(q, q->idle[--q->idles], block, write, now);
        if ((uint16_t)(q->avail - q->considered) >= opt.batch) {
            consider_kick(q);
        }
    }
}

/* The eventfd counts what was written to it, and is nonblocking. */
static void take_interrupts(struct queue *q)
{
    uint64_t n;

    if (read(q->irq_fd, &n, sizeof(n)) == sizeof(n)) {
        count.interrupts += n;
        q->interrupted = true;
    }
}

/*
 * Look after one queue; false if there was nothing to do.
 *
 * The reaction time starts when the driver sees that something is finished (or,
 * with --wait irq, that the interrupt has come) and ends when it begins to take
 * used entries.  It then goes on until there are none, without a pause.
 */
static bool serve(struct queue *q)
{
    uint64_t now, n = 0;
    bool ready;

    if (q->irq_fd >= 0) {
        /* when nobody waits for it, the kernel adds them up for read_figures() */
        if (opt.wait == WAIT_IRQ && !q->interrupted) {
            take_interrupts(q);
        }
    } else if (__atomic_load_n(q->msi, __ATOMIC_RELAXED) && __atomic_exchange_n(q->msi, 0, __ATOMIC_SEQ_CST)) {
        count.interrupts++;
        q->interrupted = true;
    }
    ready = opt.wait == WAIT_IRQ ? q->interrupted : used_pending(q);
    if (ready && opt.reaction_ns && !q->going_on) {
        now = now_ns();
        if (!q->react_at) {
            /* not random64(): how often we react must not change which blocks are next */
            q->react_at = now + (opt.jitter ? mix64(now) % (2 * opt.reaction_ns + 1) : opt.reaction_ns);
        }
        ready = now >= q->react_at;
        if (!ready) {
            return true;
        }
    }
    if (!ready) {
        return false;
    }
    q->react_at = 0;
    q->interrupted = false;
    if (opt.irq == IRQ_BATCH && !opt.event_idx) {
        store_relaxed(&q->vring.avail->flags, VRING_AVAIL_F_NO_INTERRUPT);
    }
    do {
        while (n < opt.qd && used_pending(q)) {
            unsigned id = take(q);

            if (opt.irq == IRQ_EACH) {
                arm(q);
            }
            now = now_ns();
            finish(q, id, now);
            q->idle[q->idles++] = id;
            issue(q, now);
            n++;
        }
        consider_kick(q);
        if (opt.irq == IRQ_BATCH) {
            arm(q);
        }
        /* what came before the interrupt was armed again brings none */
    } while (n < opt.qd && used_pending(q));
    q->going_on = q->interrupted = used_pending(q);
    if (n) {
        count.batches++;
        count.batch_max = n > count.batch_max ? n : count.batch_max;
    }
    return true;
}

__attribute__((noreturn)) static void die_of_hang(void)
{
    struct queue *q = queues;

    while (!q->in_flight) {
        q++;
    }
    if (opt.wait == WAIT_IRQ && used_pending(q)) {
        die("lost notification: queue %u has finished requests (used index %u, seen %u), "
            "and no interrupt for %g s", q->index, q->vring.used->idx, q->last_used, opt.timeout);
    }
    die("hang: %u requests on queue %u without an answer for %g s (available index %u, used index %u)",
        q->in_flight, q->index, opt.timeout, q->avail, q->last_used);
}

/* Run the job until it is finished, or (endless) until time and requests are over. */
static void run_at_least(double seconds, uint64_t ios)
{
    uint64_t end = now_ns() + (uint64_t)(seconds * NS), progress_at = now_ns();
    uint64_t before = count.done, done = before;
    /* the interrupt of a vCPU does not wait for the end of a time slice */
    bool yield = (opt.main_cpu == opt.driver_cpu && !opt.irqfd) || opt.iothread_cpu == opt.driver_cpu;

    for (unsigned i = 0; i < opt.queues; i++) {
        struct queue *q = &queues[i];

        for (unsigned n = 0; n < opt.qd; n++) {
            issue(q, now_ns());
        }
        consider_kick(q);
    }
    for (unsigned round = 1; ; round++) {
        bool busy = false;

        for (unsigned i = 0; i < opt.queues; i++) {
            busy |= serve(&queues[i]);
        }
        if (!busy && yield) {
            sched_yield();
        }
        if (!job.endless && !job.left && !all_in_flight()) {
            break;
        }
        if (round % 64 == 0) {
            uint64_t now = now_ns();

            if (job.endless && now >= end && count.done - before >= ios) {
                break;
            }
            if (count.done != done) {
                done = count.done;
                progress_at = now;
            } else if (now - progress_at > opt.timeout * NS) {
                if (waitpid(qemu_pid, NULL, WNOHANG) == qemu_pid) {
                    die_of_qemu();
                }
                die_of_hang();
            }
        }
    }
}

static void run(double seconds)
{
    run_at_least(seconds, opt.min_ios);
}

static void drain(void)
{
    job.endless = false;
    job.left = 0;
    run(0);
}

/*
 * With --turns: say that we are idle, and wait for a line.  Other processes are measured
 * meanwhile on the same CPUs, so that a machine which is faster now and slower then is so
 * for all of them.
 */
static void wait_for_turn(void)
{
    char line;

    if (!opt.turns) {
        return;
    }
    drain();
    if (puts("idle") == EOF || fflush(stdout)) {
        die("standard output: %s", strerror(errno));
    }
    if (read(STDIN_FILENO, &line, 1) != 1) {
        die("--turns: standard input has ended before the last turn");
    }
    job.endless = true;
    /* not only the burst with which a turn begins */
    run_at_least(TURN_WARMUP, (uint64_t)opt.qd * opt.queues);
}

/* The number that follows a word in a file of /proc; 0 if there is none. */
static uint64_t first_number(const char *path, const char *after)
{
    char text[512], *at;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

    if (n < 0) {
        die("%s: %s", path, strerror(errno));
    }
    close(fd);
    text[n] = 0;
    at = strstr(text, after);
    return at ? strtoull(at + strlen(after), NULL, 10) : 0;
}

/* -- kicks and interrupts: QEMU's own eventfds ------------------------------------------------ */

enum { MAX_FDS = 4096 };
#define NO_EVENTFD UINT64_MAX

/* What each eventfd of QEMU has counted, by its descriptor there. */
static void read_eventfds(uint64_t *counted)
{
    char path[64];
    struct dirent *e;
    DIR *d;

    for (int fd = 0; fd < MAX_FDS; fd++) {
        counted[fd] = NO_EVENTFD;
    }
    snprintf(path, sizeof(path), "/proc/%d/fdinfo", qemu_pid);
    d = opendir(path);
    if (!d) {
        die("%s: %s", path, strerror(errno));
    }
    while ((e = readdir(d))) {
        char text[512], *at;
        int fd = atoi(e->d_name), file = openat(dirfd(d), e->d_name, O_RDONLY | O_CLOEXEC);
        ssize_t n = file < 0 ? 0 : read(file, text, sizeof(text) - 1);

        close(file);
        text[n > 0 ? n : 0] = 0;
        at = strstr(text, "eventfd-count:");
        if (at && fd < MAX_FDS) {
            counted[fd] = strtoull(at + strlen("eventfd-count:"), NULL, 16);
        }
    }
    closedir(d);
}

/* The one eventfd that has counted at least so many in between, or -1. */
static int which_eventfd(const uint64_t *before, const uint64_t *after, int64_t least)
{
    int found = -1;

    for (int fd = 0; fd < MAX_FDS; fd++) {
        if (before[fd] != NO_EVENTFD && after[fd] != NO_EVENTFD &&
            (int64_t)(after[fd] - before[fd]) >= least) {
            if (found >= 0) {
                return -1;
            }
            found = fd;
        }
    }
    return found;
}

static int copy_descriptor(int fd)
{
    int pidfd = syscall(SYS_pidfd_open, qemu_pid, 0);
    int copy = pidfd < 0 ? -1 : syscall(SYS_pidfd_getfd, pidfd, fd, 0);

    if (copy < 0) {
        die("cannot copy QEMU's eventfds: pidfd_getfd: %s", strerror(errno));
    }
    close(pidfd);
    return copy;
}

/*
 * One request by itself, for find_irq_fds().  Who asks for the next interrupt before
 * QEMU has decided about this one gets none, so wait a while.
 */
static void one_request(struct queue *q, unsigned wait_us)
{
    uint64_t end = now_ns() + (uint64_t)(opt.timeout * NS);

    submit(q, q->idle[--q->idles], 0, false, now_ns());
    q->considered = q->avail;
    kick(q);
    while (!used_pending(q)) {
        if (now_ns() > end) {
            die_of_hang();
        }
        sched_yield();
    }
    usleep(wait_us);
    q->idle[q->idles++] = take(q);
    arm(q);
}

/* Stop one thread of QEMU; should we end before it goes on, QEMU does too. */
static void stop_thread(const char *what, pid_t tid)
{
    int status;

    if (ptrace(PTRACE_SEIZE, tid, 0, PTRACE_O_EXITKILL) || ptrace(PTRACE_INTERRUPT, tid, 0, 0)) {
        die("cannot stop QEMU's %s: ptrace: %s", what, strerror(errno));
    }
    if (waitpid(tid, &status, __WALL) != tid || !WIFSTOPPED(status)) {
        die_of_qemu();
    }
}

/*
 * Find the ioeventfd of each queue: the one that counts a kick through qtest.
 * The IOThread, which would read it, is stopped meanwhile.
 */
static void find_kick_fds(void)
{
    static uint64_t before[MAX_FDS], after[MAX_FDS];

    stop_thread("IOThread", iothread_tid);
    for (unsigned i = 0; i < opt.queues; i++) {
        int fd = -1;

        /* an eventfd of the main thread's own may happen to count as well */
        for (int tries = 0; fd < 0 && tries < 20; tries++) {
            read_eventfds(before);
            qtest_kick(&queues[i]);
            read_eventfds(after);
            fd = which_eventfd(before, after, 1);
        }
        if (fd < 0) {
            die("the ioeventfd of queue %u is not to be found; --kick qtest does without", i);
        }
        queues[i].kick_fd = copy_descriptor(fd);
    }
    if (ptrace(PTRACE_DETACH, iothread_tid, 0, 0)) {
        die("cannot let QEMU's IOThread go on: ptrace: %s", strerror(errno));
    }
}

/* Stop QEMU's main thread where it waits for events, so that it holds no lock. */
static void stop_main_thread(void)
{
    char path[64];
    int status;

    stop_thread("main thread", qemu_pid);
    snprintf(path, sizeof(path), "/proc/%d/task/%d/syscall", qemu_pid, qemu_pid);
    for (int i = 0; first_number(path, "") != SYS_ppoll; i++) {
        if (i == 1000) {
            die("--irqfd on: QEMU's main thread never waits for events");
        }
        ptrace(PTRACE_CONT, qemu_pid, 0, 0);
        usleep(1000);
        if (ptrace(PTRACE_INTERRUPT, qemu_pid, 0, 0) || waitpid(qemu_pid, &status, __WALL) != qemu_pid ||
            !WIFSTOPPED(status)) {
            die_of_qemu();
        }
    }
}

/*
 * Find the eventfd of each queue's interrupt: after some requests, one at a time,
 * it has counted nearly all of them, now that the main thread no longer reads it.
 */
static void find_irq_fds(void)
{
    enum { REQUESTS = 8, NEARLY = 5 };
    static uint64_t before[MAX_FDS], after[MAX_FDS];

    for (unsigned i = 0; i < opt.queues; i++) {
        struct queue *q = &queues[i];
        int fd = -1;

        for (int tries = 0; fd < 0; tries++) {
            if (tries == 50) {
                die_status = EX_TEMPFAIL;       /* one QEMU in hundreds; the next one will do */
                die("--irqfd on: the eventfd of queue %u's interrupt is not to be found", i);
            }
            read_eventfds(before);
            for (unsigned r = 0; r < REQUESTS; r++) {
                one_request(q, 100 + 1000 * tries);
            }
            read_eventfds(after);
            fd = which_eventfd(before, after, NEARLY);
        }
        q->irq_fd = copy_descriptor(fd);
        take_interrupts(q);
        q->interrupted = false;
    }
}

static void start_device(void)
{
    set_status(VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER | VIRTIO_CONFIG_S_FEATURES_OK |
               VIRTIO_CONFIG_S_DRIVER_OK);
    if (opt.kick == KICK_EVENTFD) {
        find_kick_fds();
    }
    if (opt.irqfd) {
        stop_main_thread();
        if (opt.irq != IRQ_OFF) {
            find_irq_fds();
        }
    }
}

/* -- what the kernel counts ------------------------------------------------------ */

struct figures {
    uint64_t time, iothread_cpu, main_cpu, process_cpu, driver_cpu, syscw, syscr;
    struct counts count;
};

static uint64_t cpu_clock(clockid_t clock)
{
    struct timespec t;

    return clock_gettime(clock, &t) ? 0 : (uint64_t)t.tv_sec * NS + t.tv_nsec;
}

static struct figures read_figures(void)
{
    struct figures f;
    char path[96];
    clockid_t clock;

    for (unsigned i = 0; i < opt.queues; i++) {
        if (queues[i].irq_fd >= 0) {
            take_interrupts(&queues[i]);
        }
    }

    snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", qemu_pid, iothread_tid);
    f.iothread_cpu = first_number(path, "");
    snprintf(path, sizeof(path), "/proc/%d/task/%d/schedstat", qemu_pid, qemu_pid);
    f.main_cpu = first_number(path, "");
    snprintf(path, sizeof(path), "/proc/%d/task/%d/io", qemu_pid, iothread_tid);
    f.syscw = first_number(path, "syscw: ");
    f.syscr = first_number(path, "syscr: ");
    f.process_cpu = clock_getcpuclockid(qemu_pid, &clock) ? 0 : cpu_clock(clock);
    f.driver_cpu = cpu_clock(CLOCK_THREAD_CPUTIME_ID);
    f.count = count;
    f.time = now_ns();
    return f;
}

/* Work for a while, and add to the sum what it took. */
static void measure(struct figures *sum, double seconds, unsigned parts)
{
    struct figures a = read_figures(), b;

    count.batch_max = 0;
    run_at_least(seconds / parts, (opt.min_ios + parts - 1) / parts);
    b = read_figures();
    if (b.count.batch_max > sum->count.batch_max) {
        sum->count.batch_max = b.count.batch_max;
    }
#define ADD(field) (sum->field += b.field - a.field)
    ADD(time);
    ADD(iothread_cpu);
    ADD(main_cpu);
    ADD(process_cpu);
    ADD(driver_cpu);
    ADD(syscw);
    ADD(syscr);
    ADD(count.done);
    ADD(count.writes);
    ADD(count.kicks);
    ADD(count.interrupts);
    ADD(count.batches);
#undef ADD
}

/* System calls of the IOThread; counting them costs time, so not while it is measured. */
static const char *const calls[] = {
    "write", "read", "io_submit", "io_getevents", "io_uring_enter", "ppoll", "epoll_wait", "epoll_pwait2", "futex"
};
enum { CALLS = sizeof(calls) / sizeof(calls[0]) };
static int call_fd[CALLS];
static char calls_missing[160];

static bool has_call_events(const char *root)
{
    char path[128];

    snprintf(path, sizeof(path), "%s/events/syscalls/sys_enter_write/id", root);
    return access(path, R_OK) == 0;
}

static void open_call_counters(void)
{
    static const char *const roots[] = { "/sys/kernel/tracing", "/sys/kernel/debug/tracing" };
    const char *root = NULL;
    char path[128];

    for (unsigned i = 0; i < 2 && !root; i++) {
        root = has_call_events(roots[i]) ? roots[i] : NULL;
    }
    if (!root && !unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
        !mount("tracefs", roots[0], "tracefs", 0, NULL)) {
        /* mounted for this process only */
        root = has_call_events(roots[0]) ? roots[0] : NULL;
    }
    if (!root) {
        strcpy(calls_missing, "no syscalls tracepoints (is tracefs mounted, and are we root?)");
        return;
    }
    for (unsigned i = 0; i < CALLS; i++) {
        struct perf_event_attr attr = { .type = PERF_TYPE_TRACEPOINT, .size = sizeof(attr), .disabled = 1 };

        call_fd[i] = -1;
        snprintf(path, sizeof(path), "%s/events/syscalls/sys_enter_%s/id", root, calls[i]);
        if (access(path, R_OK)) {
            continue;       /* this kernel has no such call */
        }
        attr.config = first_number(path, "");
        call_fd[i] = syscall(SYS_perf_event_open, &attr, iothread_tid, -1, -1, PERF_FLAG_FD_CLOEXEC);
        if (call_fd[i] < 0) {
            snprintf(calls_missing, sizeof(calls_missing), "perf_event_open: %s", strerror(errno));
            return;
        }
    }
}

static void switch_call_counters(unsigned long request)
{
    for (unsigned i = 0; i < CALLS && !*calls_missing; i++) {
        if (call_fd[i] >= 0) {
            ioctl(call_fd[i], request, 0);
        }
    }
}

/* -- the result ------------------------------------------------------------------ */

static const char *const irq_names[] = { "each", "batch", "off" };
static const char *const wait_names[] = { "used", "irq" };
static const char *const kick_names[] = { "eventfd", "qtest" };

static void print_result(struct figures m, struct figures c, uint64_t verified)
{
    double s = m.time / 1e9, n = m.count.done, batches = m.count.batches;
    uint64_t value;

    printf("{\"parameters\": {\"aio\": \"%s\", \"cache_direct\": %s, \"qd\": %u, \"queues\": %u, \"batch\": %u, "
           "\"write_percent\": %u, \"bs\": %u, \"seconds\": %g, \"turns\": %u, \"warmup\": %g, \"event_idx\": %s, "
           "\"indirect\": %s, \"irq\": \"%s\", \"irqfd\": %s, \"wait\": \"%s\", \"kick\": \"%s\", "
           "\"reaction_us\": %g, \"jitter\": %s, \"count_seconds\": %g, \"min_ios\": %llu, \"poll_max_ns\": %llu, "
           "\"machine\": \"%s\", \"iothread_cpu\": %d, \"main_cpu\": %d, "
           "\"driver_cpu\": %d, \"seed\": %llu, \"pattern_seed\": %llu},\n",
           opt.aio, opt.cache_direct ? "true" : "false", opt.qd, opt.queues, opt.batch, opt.write_percent,
           opt.bs, opt.seconds, opt.turns, opt.warmup, opt.event_idx ? "true" : "false", opt.indirect ? "true" : "false",
           irq_names[opt.irq], opt.irqfd ? "true" : "false", wait_names[opt.wait], kick_names[opt.kick],
           opt.reaction_ns / 1e3, opt.jitter ? "true" : "false", opt.count_seconds, (unsigned long long)opt.min_ios,
           (unsigned long long)opt.poll_max_ns, opt.machine, opt.iothread_cpu, opt.main_cpu, opt.driver_cpu,
           (unsigned long long)opt.seed, (unsigned long long)opt.pattern_seed);
    printf(" \"device\": {\"features\": \"0x%llx\", \"queue_size\": %u, \"blocks\": %llu}, "
           "\"verified_blocks\": %llu,\n", (unsigned long long)features, queue_size(),
           (unsigned long long)blocks, (unsigned long long)verified);
    printf(" \"seconds\": %.6f, \"ios\": %.0f, \"writes\": %llu, \"iops\": %.1f,\n", s, n,
           (unsigned long long)m.count.writes, n / s);
    printf(" \"latency_us\": {\"min\": %.3f, \"mean\": %.3f, \"p50\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f},\n",
           latency_least / 1e3, latency_sum / n / 1e3, percentile_us(.5), percentile_us(.99), percentile_us(.999),
           latency_most / 1e3);
    printf(" \"batches_seen\": {\"number\": %.0f, \"mean\": %.3f, \"max\": %llu},\n", batches,
           batches ? n / batches : 0, (unsigned long long)m.count.batch_max);
    printf(" \"cpu_ns_per_io\": {\"iothread\": %.1f, \"main\": %.1f, \"process\": %.1f, \"driver\": %.1f}, "
           "\"iothread_busy\": %.4f,\n", m.iothread_cpu / n, m.main_cpu / n, m.process_cpu / n,
           m.driver_cpu / n, m.iothread_cpu / 1e9 / s);
    printf(" \"per_io\": {\"writes\": %.6f, \"reads\": %.6f, \"kicks\": %.6f, \"interrupts\": %.6f},\n",
           m.syscw / n, m.syscr / n, m.count.kicks / n, m.count.interrupts / n);
    printf(" \"syscalls\": {\"seconds\": %.6f, \"ios\": %.0f, ", c.time / 1e9, (double)c.count.done);
    if (*calls_missing) {
        printf("\"source\": \"/proc only: %s\", \"per_io\": {\"write\": %.6f, \"read\": %.6f}}}\n", calls_missing,
               (double)c.syscw / c.count.done, (double)c.syscr / c.count.done);
        return;
    }
    printf("\"source\": \"perf tracepoints\", \"per_io\": {");
    for (unsigned i = 0, first = 1; i < CALLS; i++) {
        if (call_fd[i] >= 0 && read(call_fd[i], &value, sizeof(value)) == sizeof(value)) {
            printf("%s\"%s\": %.6f", first ? "" : ", ", calls[i], (double)value / c.count.done);
            first = 0;
        }
    }
    printf("}}}\n");
}

/* -- options --------------------------------------------------------------------- */

static const char usage[] =
    "usage: ringload --qemu BINARY --image FILE [option ...]   (JSON on standard output)\n"
    "       ringload --fill --image FILE [--pattern-seed N]    (write the pattern that is verified)\n"
    "  --aio native|io_uring|threads  --cache-direct on|off  --poll-max-ns N   of QEMU\n"
    "  --machine TYPE  --qemu-arg ARGUMENT (repeatable)\n"
    "  --qd N (per queue)  --queues N  --bs BYTES  --rw read|write|mix:PERCENT_WRITES\n"
    "  --batch N             submitted before a kick is considered (or when nothing is left to take)\n"
    "  --event-idx on|off  --indirect on|off\n"
    "  --irq each|batch|off  ask for an interrupt again after every used entry, after all, never\n"
    "  --wait used|irq       look at the used index, or take entries only after an interrupt\n"
    "  --reaction-us T       from seeing (used index or interrupt) to taking the first entry\n"
    "  --jitter on|off       a different reaction time each time, evenly from 0 to 2 T\n"
    "  --irqfd on|off        stop QEMU's main thread and take interrupts from the eventfds, as KVM does\n"
    "  --kick eventfd|qtest\n"
    "  --iothread-cpu N  --main-cpu N  --driver-cpu N\n"
    "  --seconds T  --warmup T  --count-seconds T  --timeout T\n"
    "  --turns N             measure in N parts and count system calls in one more, each when a line comes on\n"
    "                        standard input; a line on standard output, before the JSON, says that we are idle\n"
    "  --min-ios N           a window is longer if fewer requests were finished in it\n"
    "  --verify BLOCKS|all|none  --seed N  --pattern-seed N\n";

static double number(const char *name, const char *text, double low, double high, bool whole)
{
    char *end;
    double value = strtod(text, &end);

    if (end == text || *end || !(value >= low && value <= high) || (whole && value != (uint64_t)value)) {
        die("--%s %s: give a %snumber from %g to %g", name, text, whole ? "whole " : "", low, high);
    }
    return value;
}

static uint64_t number64(const char *name, const char *text)
{
    char *end;
    unsigned long long value;

    errno = 0;
    value = strtoull(text, &end, 10);
    if (end == text || *end || errno || *text == '-') {
        die("--%s %s: give a whole number", name, text);
    }
    return value;
}

/* Index of text in a list that ends with NULL. */
static int choice(const char *name, const char *text, const char *const *list, unsigned n)
{
    for (unsigned i = 0; i < n; i++) {
        if (!strcmp(text, list[i])) {
            return i;
        }
    }
    fprintf(stderr, "ringload: --%s %s: give ", name, text);
    for (unsigned i = 0; i < n; i++) {
        fprintf(stderr, "%s%s", list[i], i + 1 == n ? "\n" : i + 2 == n ? " or " : ", ");
    }
    exit(1);
}

static bool on_off(const char *name, const char *text)
{
    static const char *const list[] = { "off", "on" };

    return choice(name, text, list, 2);
}

static void parse_options(int argc, char **argv)
{
    enum {
        QEMU = 256, IMAGE, AIO, MACHINE, QEMU_ARG, CACHE_DIRECT, POLL, QD, QUEUES, BATCH, BS, RW, EVENT_IDX,
        INDIRECT, IRQ, IRQFD, WAIT, REACTION, JITTER, KICK, IOTHREAD_CPU, MAIN_CPU, DRIVER_CPU, SECONDS, WARMUP,
        COUNT_SECONDS, TURNS, TIMEOUT, MIN_IOS, VERIFY, SEED, PATTERN_SEED, FILL, HELP
    };
    static const struct option options[] = {
        { "qemu", 1, 0, QEMU }, { "image", 1, 0, IMAGE }, { "aio", 1, 0, AIO }, { "machine", 1, 0, MACHINE },
        { "qemu-arg", 1, 0, QEMU_ARG }, { "cache-direct", 1, 0, CACHE_DIRECT }, { "poll-max-ns", 1, 0, POLL },
        { "qd", 1, 0, QD }, { "queues", 1, 0, QUEUES }, { "batch", 1, 0, BATCH }, { "bs", 1, 0, BS },
        { "rw", 1, 0, RW }, { "event-idx", 1, 0, EVENT_IDX }, { "indirect", 1, 0, INDIRECT },
        { "irq", 1, 0, IRQ }, { "irqfd", 1, 0, IRQFD }, { "wait", 1, 0, WAIT },
        { "reaction-us", 1, 0, REACTION }, { "jitter", 1, 0, JITTER }, { "kick", 1, 0, KICK },
        { "iothread-cpu", 1, 0, IOTHREAD_CPU }, { "main-cpu", 1, 0, MAIN_CPU },
        { "driver-cpu", 1, 0, DRIVER_CPU }, { "seconds", 1, 0, SECONDS }, { "warmup", 1, 0, WARMUP },
        { "count-seconds", 1, 0, COUNT_SECONDS }, { "timeout", 1, 0, TIMEOUT },
        { "turns", 1, 0, TURNS }, { "min-ios", 1, 0, MIN_IOS }, { "verify", 1, 0, VERIFY },
        { "seed", 1, 0, SEED }, { "pattern-seed", 1, 0, PATTERN_SEED }, { "fill", 0, 0, FILL },
        { "help", 0, 0, HELP }, { 0 }
    };
    static const char *const aio[] = { "native", "io_uring", "threads" };
    int c, i;

    while ((c = getopt_long(argc, argv, "", options, &i)) != -1) {
        const char *name = c >= QEMU ? options[i].name : "";

        switch (c) {
        case QEMU: opt.qemu = optarg; break;
        case IMAGE: opt.image = optarg; break;
        case AIO: opt.aio = aio[choice(name, optarg, aio, 3)]; break;
        case MACHINE: opt.machine = optarg; break;
        case QEMU_ARG:
            if (opt.qemu_args == MAX_QEMU_ARGS) {
                die("--qemu-arg: no more than %d", MAX_QEMU_ARGS);
            }
            opt.qemu_arg[opt.qemu_args++] = optarg;
            break;
        case CACHE_DIRECT: opt.cache_direct = on_off(name, optarg); break;
        case POLL: opt.poll_max_ns = number(name, optarg, 0, 1e9, true); break;
        case QD: opt.qd = number(name, optarg, 1, MAX_QD, true); break;
        case QUEUES: opt.queues = number(name, optarg, 1, MAX_QUEUES, true); break;
        case BATCH: opt.batch = number(name, optarg, 1, MAX_QD, true); break;
        case BS:
            opt.bs = number(name, optarg, SECTOR, 1 << 20, true);
            if (opt.bs % SECTOR) {
                die("--bs %s: give a multiple of %d", optarg, SECTOR);
            }
            break;
        case RW:
            if (!strncmp(optarg, "mix:", 4)) {
                opt.write_percent = number("rw mix:", optarg + 4, 0, 100, true);
            } else if (!strcmp(optarg, "write") || !strcmp(optarg, "read")) {
                opt.write_percent = *optarg == 'w' ? 100 : 0;
            } else {
                die("--rw %s: give read, write or mix:PERCENT_WRITES", optarg);
            }
            break;
        case EVENT_IDX: opt.event_idx = on_off(name, optarg); break;
        case INDIRECT: opt.indirect = on_off(name, optarg); break;
        case IRQ: opt.irq = choice(name, optarg, irq_names, 3); break;
        case IRQFD: opt.irqfd = on_off(name, optarg); break;
        case WAIT: opt.wait = choice(name, optarg, wait_names, 2); break;
        case REACTION: opt.reaction_ns = number(name, optarg, 0, 1e6, false) * 1000; break;
        case JITTER: opt.jitter = on_off(name, optarg); break;
        case KICK: opt.kick = choice(name, optarg, kick_names, 2); break;
        case IOTHREAD_CPU: opt.iothread_cpu = number(name, optarg, 0, CPU_SETSIZE - 1, true); break;
        case MAIN_CPU: opt.main_cpu = number(name, optarg, 0, CPU_SETSIZE - 1, true); break;
        case DRIVER_CPU: opt.driver_cpu = number(name, optarg, 0, CPU_SETSIZE - 1, true); break;
        case SECONDS: opt.seconds = number(name, optarg, 0.01, 86400, false); break;
        case WARMUP: opt.warmup = number(name, optarg, 0, 3600, false); break;
        case COUNT_SECONDS: opt.count_seconds = number(name, optarg, 0.01, 3600, false); break;
        case TIMEOUT: opt.timeout = number(name, optarg, 0.1, 3600, false); break;
        case TURNS: opt.turns = number(name, optarg, 1, 1000, true); break;
        case MIN_IOS: opt.min_ios = number(name, optarg, 1, 1e9, true); break;
        case VERIFY:
            opt.verify_blocks = !strcmp(optarg, "all") ? UINT64_MAX : !strcmp(optarg, "none") ? 0
                : number(name, optarg, 0, 1e12, true);
            break;
        case SEED: opt.seed = number64(name, optarg); break;
        case PATTERN_SEED: opt.pattern_seed = number64(name, optarg); break;
        case FILL: opt.fill = true; break;
        case HELP: fputs(usage, stdout); exit(0);
        default: exit(1);       /* getopt has said why */
        }
    }
    if (optind < argc) {
        die("%s: not an option; see --help", argv[optind]);
    }
    if (!opt.image || (!opt.qemu && !opt.fill)) {
        die("--qemu and --image are needed; see --help");
    }
    if (!opt.cache_direct && !strcmp(opt.aio, "native")) {
        die("--aio native needs --cache-direct on");
    }
    if (opt.wait == WAIT_IRQ && opt.irq == IRQ_OFF) {
        die("--wait irq and --irq off: it would wait for ever");
    }
    if (opt.irqfd && opt.kick == KICK_QTEST) {
        die("--irqfd on and --kick qtest: the main thread, which is stopped, would have to kick");
    }
    if (!opt.indirect && opt.qd * 3 > 1024) {
        die("--qd %u with --indirect off: at most 341 requests fit in a queue", opt.qd);
    }
}

int main(int argc, char **argv)
{
    struct figures measured = { 0 }, counted = { 0 };
    uint64_t verified = 0;
    unsigned parts;

    parse_options(argc, argv);
    parts = opt.turns ? opt.turns : 1;
    signal(SIGINT, on_signal);
    signal(SIGTERM, on_signal);
    signal(SIGHUP, on_signal);
    if (opt.fill) {
        fill_image();
        return 0;
    }
    image_size();           /* complains about a wrong name before QEMU does */
    random_state = mix64(opt.seed) | 1;
    start_qemu();
    pin("IOThread", iothread_tid, opt.iothread_cpu);
    pin("main thread", qemu_pid, opt.main_cpu);
    pin("driver", 0, opt.driver_cpu);
    set_up_device();
    start_device();
    open_call_counters();

    if (opt.verify_blocks) {
        job.verify = true;
        job.in_order = opt.verify_blocks >= blocks;
        job.left = verified = job.in_order ? blocks : opt.verify_blocks;
        run(0);
        job.verify = false;
    }
    job.in_order = false;
    job.endless = true;
    job.write_percent = opt.write_percent;
    run(opt.warmup);
    for (unsigned turn = 0; turn < parts; turn++) {
        wait_for_turn();
        job.record = true;
        measure(&measured, opt.seconds, parts);
        job.record = false;
    }
    wait_for_turn();
    switch_call_counters(PERF_EVENT_IOC_ENABLE);
    measure(&counted, opt.count_seconds, 1);
    switch_call_counters(PERF_EVENT_IOC_DISABLE);
    drain();
    if (opt.write_percent && opt.verify_blocks) {
        job.verify = true;
        job.write_percent = 0;
        job.next = 0;
        job.in_order = opt.verify_blocks >= blocks;
        job.left = job.in_order ? blocks : opt.verify_blocks;
        verified += job.left;
        run(0);
    }
    end_qemu();
    print_result(measured, counted, verified);
    if (fflush(stdout) || ferror(stdout)) {
        die("standard output: %s", strerror(errno));
    }
    return 0;
}
