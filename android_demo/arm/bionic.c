/* What differs between Android's C library and glibc, of what ONNX Runtime's arm64 libraries import: a function b_NAME
 * stands for NAME. All else is glibc's own. A library apart from the one that exports the names: calls of its own must
 * reach glibc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* stdin, stdout and stderr are places in an array of 152 bytes each. */
static char *files;
static FILE *own(void *file) {
  long place = (char *)file - files;
  if (place < 0 || place >= 3 * 152) return file;
  return place < 152 ? stdin : place < 304 ? stdout : stderr;
}
int b_vfprintf(void *file, const char *format, va_list all) { return vfprintf(own(file), format, all); }
int b_fprintf(void *file, const char *format, ...) {
  va_list all;
  va_start(all, format);
  int count = b_vfprintf(file, format, all);
  va_end(all);
  return count;
}
int b_fputc(int c, void *file) { return fputc(c, own(file)); }
int b_fputs(const char *text, void *file) { return fputs(text, own(file)); }
size_t b_fwrite(const void *from, size_t size, size_t count, void *file) {
  return fwrite(from, size, count, own(file));
}
int b_fflush(void *file) { return fflush(file ? own(file) : NULL); }
int b_fileno(void *file) { return fileno(own(file)); }

int *b___errno(void) { return &errno; }
int __xpg_strerror_r(int error, char *text, size_t size); /* POSIX's own, which no header declares beside GNU's */
char *b___gnu_strerror_r(int error, char *text, size_t size) { return strerror_r(error, text, size); }
int b_strerror_r(int error, char *text, size_t size) { return __xpg_strerror_r(error, text, size); }
size_t b___strlen_chk(const char *text, size_t size) { return strlen(text); }
char *b___strchr_chk(const char *text, int c, size_t size) { return strchr(text, c); }
void b___FD_SET_chk(int fd, unsigned long *set, size_t size) { set[fd / 64] |= 1ul << fd % 64; }
int b___FD_ISSET_chk(int fd, const unsigned long *set, size_t size) { return set[fd / 64] >> fd % 64 & 1; }
size_t b___ctype_get_mb_cur_max(void) { return 4; }
int b___system_property_get(const char *name, char *value) { return *value = 0; }

void b_android_set_abort_message(const char *text) { fprintf(stderr, "abort: %s\n", text); }
int b___android_log_vprint(int priority, const char *tag, const char *format, va_list all) {
  fprintf(stderr, "%s: ", tag);
  int count = vfprintf(stderr, format, all);
  fputc('\n', stderr);
  return count;
}
int b___android_log_print(int priority, const char *tag, const char *format, ...) {
  va_list all;
  va_start(all, format);
  int count = b___android_log_vprint(priority, tag, format, all);
  va_end(all);
  return count;
}
int b___android_log_write(int priority, const char *tag, const char *text) {
  return b___android_log_print(priority, tag, "%s", text);
}

/* A set of signals has 8 bytes. */
int b_sigfillset(unsigned long *set) { return *set = -1ul, 0; }
int b_pthread_sigmask(int how, const unsigned long *set, unsigned long *old) {
  if (old) *old = 0;
  return 0;
}

long b_sysconf(int name) {
  switch (name) {
    case 0x06: return sysconf(_SC_CLK_TCK);
    case 0x27: case 0x28: return sysconf(_SC_PAGESIZE);
    case 0x60: return sysconf(_SC_NPROCESSORS_CONF);
    case 0x61: return sysconf(_SC_NPROCESSORS_ONLN);
    case 0x62: return sysconf(_SC_PHYS_PAGES);
    case 0x63: return sysconf(_SC_AVPHYS_PAGES);
    default: return -1;
  }
}

/* A mutex has 40 bytes, its attributes 8, a thread's 56: glibc's are larger on arm64, and it must not clear them. */
struct attributes { size_t stack; };
int b_pthread_attr_init(struct attributes *told) { return told->stack = 0; }
int b_pthread_attr_destroy(struct attributes *told) { return 0; }
int b_pthread_attr_setstacksize(struct attributes *told, size_t size) { return told->stack = size, 0; }
int b_pthread_create(pthread_t *thread, const struct attributes *told, void *(*work)(void *), void *with) {
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  if (told && told->stack) pthread_attr_setstacksize(&attributes, told->stack < 1 << 18 ? 1 << 18 : told->stack);
  int error = pthread_create(thread, &attributes, work, with);
  pthread_attr_destroy(&attributes);
  return error;
}
int b_pthread_mutexattr_init(long *kind) { return *kind = 0; }
int b_pthread_mutexattr_settype(long *kind, int type) { return *kind = type, 0; }
int b_pthread_mutexattr_destroy(long *kind) { return 0; }
int b_pthread_mutex_init(void *mutex, const long *kind) {
  pthread_mutex_t made;
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  if (kind) pthread_mutexattr_settype(&attributes, *kind & 15);
  pthread_mutex_init(&made, &attributes);
  memcpy(mutex, &made, 40);
  return 0;
}

/* A condition is aligned to 4 bytes, glibc's to 8: its first 8 bytes lead to one of glibc's. */
static pthread_cond_t *condition(void *place) {
  static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t *made;
  pthread_mutex_lock(&lock);
  memcpy(&made, place, 8);
  if (!made) {
    made = malloc(sizeof *made);
    pthread_cond_init(made, NULL);
    memcpy(place, &made, 8);
  }
  pthread_mutex_unlock(&lock);
  return made;
}
int b_pthread_cond_init(void *place, void *told) { return memset(place, 0, 48), 0; }
int b_pthread_cond_wait(void *place, pthread_mutex_t *mutex) { return pthread_cond_wait(condition(place), mutex); }
int b_pthread_cond_timedwait(void *place, pthread_mutex_t *mutex, const struct timespec *until) {
  return pthread_cond_timedwait(condition(place), mutex, until);
}
int b_pthread_cond_signal(void *place) { return pthread_cond_signal(condition(place)); }
int b_pthread_cond_broadcast(void *place) { return pthread_cond_broadcast(condition(place)); }
int b_pthread_cond_destroy(void *place) {
  pthread_cond_t *made;
  memcpy(&made, place, 8);
  if (made) {
    pthread_cond_destroy(made);
    free(made);
    memset(place, 0, 8);
  }
  return 0;
}

static void missing(void) {
  fputs("a function of Android was called that glibc lacks\n", stderr);
  abort();
}

/* Called by the library that exports the names, when it is loaded: where each of them leads. */
void bionic_fill(const char *const *names, void **to, int count, char *array, void **three) {
  void *from[] = {dlopen("libbionic.so", RTLD_LAZY), dlopen("libc.so.6", RTLD_LAZY), dlopen("libm.so.6", RTLD_LAZY)};
  for (int i = 0; i < count; i++) {
    char other[128];
    snprintf(other, sizeof other, "b_%s", names[i]);
    void *found = dlsym(from[0], other);
    for (int k = 1; !found && k < 3; k++) found = dlsym(from[k], names[i]);
    to[i] = found ? found : (void *)missing;
  }
  files = array;
  three[0] = stdin;
  three[1] = stdout;
  three[2] = stderr;
}
