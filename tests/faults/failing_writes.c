/* Preloaded: below one folder, the n-th call that writes fails, or the process is killed in it. The driver arms it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NONE, FULL, BROKEN, KILLED }; /* every call that takes room from the n-th on; the n-th alone; the process */

static char folder[PATH_MAX];
static size_t length;
static int kind = NONE;
static long nth;
static atomic_long count;

void faults_arm(const char *place, int how, long which) {
  length = strlen(place);
  memcpy(folder, place, length + 1);
  nth = which;
  kind = how;
  atomic_store(&count, 0);
}

long faults_count(void) { return atomic_load(&count); }

static int below(const char *path) {
  char whole[PATH_MAX];
  if (length == 0 || path == NULL) return 0;
  if (path[0] != '/') {
    if (getcwd(whole, sizeof whole) == NULL) return 0;
    size_t used = strlen(whole);
    snprintf(whole + used, sizeof whole - used, "/%s", path);
    path = whole;
  }
  return strncmp(path, folder, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static int handle_below(int handle) {
  char name[64], place[PATH_MAX];
  if (length == 0) return 0;
  snprintf(name, sizeof name, "/proc/self/fd/%d", handle);
  ssize_t size = readlink(name, place, sizeof place - 1);
  if (size < 0) return 0;
  place[size] = 0;
  return below(place);
}

static int at_below(int at, const char *path) {
  return at == AT_FDCWD || path[0] == '/' ? below(path) : handle_below(at);
}

/* Whether this call is to fail; errno says why. */
static int fails(int takes_room) {
  long number = atomic_fetch_add(&count, 1) + 1;
  if (kind == KILLED && number == nth) {
    kill(getpid(), SIGKILL);
    pause();
  }
  if (kind == FULL && takes_room && number >= nth) return errno = ENOSPC, 1;
  if (kind == BROKEN && number == nth) return errno = EIO, 1;
  return 0;
}

#define REAL(name) \
  static __typeof__(name) *real; \
  if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

#define WRITING(name, arguments, given, handle, type) \
  type name arguments { \
    REAL(name); \
    if (handle_below(handle) && fails(1)) return -1; \
    return real given; \
  }

WRITING(writev, (int to, const struct iovec *from, int parts), (to, from, parts), to, ssize_t)
WRITING(pwrite, (int to, const void *from, size_t size, off_t at), (to, from, size, at), to, ssize_t)
WRITING(pwrite64, (int to, const void *from, size_t size, off64_t at), (to, from, size, at), to, ssize_t)
WRITING(sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size), to, ssize_t)
WRITING(sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size), to, ssize_t)
WRITING(copy_file_range, (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags),
        (from, a, to, b, size, flags), to, ssize_t)
WRITING(ftruncate, (int to, off_t size), (to, size), to, int)
WRITING(ftruncate64, (int to, off64_t size), (to, size), to, int)
WRITING(fallocate, (int to, int mode, off_t at, off_t size), (to, mode, at, size), to, int)
WRITING(fallocate64, (int to, int mode, off64_t at, off64_t size), (to, mode, at, size), to, int)
WRITING(fsync, (int to), (to), to, int)
WRITING(fdatasync, (int to), (to), to, int)

int posix_fallocate(int to, off_t at, off_t size) {
  REAL(posix_fallocate);
  if (handle_below(to) && fails(1)) return errno;
  return real(to, at, size);
}

/* What a full disk has room for is written first, and what a kill finds is half written. */
ssize_t write(int to, const void *from, size_t size) {
  REAL(write);
  if (!handle_below(to)) return real(to, from, size);
  int half = size > 1 && atomic_load(&count) + 1 == nth && (kind == FULL || kind == KILLED);
  if (half) {
    ssize_t done = real(to, from, size / 2);
    if (kind == FULL) return atomic_fetch_add(&count, 1), done;
  }
  if (fails(1)) return -1;
  return real(to, from, size);
}

#define OPENING(name, arguments, given, asked) \
  int name arguments { \
    REAL(name); \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { \
      va_list more; \
      va_start(more, flags); \
      mode = va_arg(more, mode_t); \
      va_end(more); \
    } \
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT)) && (asked) && fails((flags & O_CREAT) != 0)) return -1; \
    return real given; \
  }

OPENING(open, (const char *path, int flags, ...), (path, flags, mode), below(path))
OPENING(open64, (const char *path, int flags, ...), (path, flags, mode), below(path))
OPENING(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), at_below(at, path))
OPENING(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), at_below(at, path))

FILE *fopen(const char *path, const char *mode) {
  REAL(fopen);
  if (mode[0] != 'r' && below(path) && fails(1)) return NULL;
  return real(path, mode);
}

FILE *fopen64(const char *path, const char *mode) {
  REAL(fopen64);
  if (mode[0] != 'r' && below(path) && fails(1)) return NULL;
  return real(path, mode);
}

int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  if (below(path) && fails(1)) return -1;
  return real(path, mode);
}

int rename(const char *from, const char *to) {
  REAL(rename);
  if (below(to) && fails(0)) return -1;
  return real(from, to);
}

int unlink(const char *path) {
  REAL(unlink);
  if (below(path)) fails(0); /* a kill may fall here, but removing needs no room */
  return real(path);
}
