/*
 * SPDX-License-Identifier: GPL-2.0-or-later
 *
 * The image as a file of this machine:
 * its size, and filling it.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "end.h"
#include "image.h"
#include "options.h"
#include "pattern.h"

uint64_t image_size(void)
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
void fill_image(void)
{
    static char buffer[1 << 20];
    uint64_t size = image_size(), done = 0;
    int fd = open(opt.image, O_WRONLY | O_CLOEXEC);

    if (fd < 0) {
        die("--image %s: %s", opt.image, strerror(errno));
    }
    while (done < size) {
        size_t n = size - done < sizeof(buffer) ? size - done : sizeof(buffer);

        pattern(buffer, done / SECTOR, n / SECTOR);
        if (pwrite(fd, buffer, n, done) != (ssize_t)n) {
            die("--image %s: cannot be written: %s", opt.image,
                strerror(errno));
        }
        done += n;
    }
    if (fsync(fd) || close(fd)) {
        die("--image %s: %s", opt.image, strerror(errno));
    }
}
