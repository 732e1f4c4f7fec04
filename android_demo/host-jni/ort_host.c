/* A JVM on Linux runs the ai.onnxruntime classes of the Android archive: its JNI layer, which imports a few C functions
 * under Android's version names, on a desktop ONNX Runtime. Compiled by build.sh once for each library that the layer was
 * linked to: each export jumps to the function of its name in another library. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>

#ifdef ORT
#define VERSION ORT
#define FROM "libonnxruntime.so.1"
#define EACH(DO) DO(0, OrtGetApiBase) DO(1, OrtSessionOptionsAppendExecutionProvider_CPU)
/* Asked for on Android only. */
void *to_nnapi(void *options, unsigned flags) { abort(); }
__asm__(".symver to_nnapi, OrtSessionOptionsAppendExecutionProvider_Nnapi@@" ORT);
#else
#define VERSION "LIBC"
#define FROM "libc.so.6"
#define EACH(DO) \
  DO(0, __cxa_atexit) DO(1, __cxa_finalize) DO(2, __register_atfork) DO(3, __stack_chk_fail) DO(4, dlclose) \
  DO(5, free) DO(6, malloc) DO(7, memcpy) DO(8, realloc) DO(9, strlen)
#endif

#define NAME(place, name) #name,
static const char *const names[] = {EACH(NAME)};
__attribute__((visibility("hidden"))) void *host_to[sizeof names / sizeof *names];

__attribute__((constructor)) static void find(void) {
  void *library = dlopen(FROM, RTLD_LAZY);
  for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
    if (!library || !(host_to[i] = dlsym(library, names[i]))) abort();
}

#if defined(__x86_64__)
#define JUMP(place) "jmp *host_to+8*" #place "(%rip)\n"
#elif defined(__aarch64__)
#define JUMP(place) \
  "adrp x16, host_to+8*" #place "\nldr x16, [x16, :lo12:host_to+8*" #place "]\nbr x16\n"
#else
#error "no JNI layer of the Android archive runs on this processor"
#endif
#define PASS(place, name)                                                                              \
  __asm__(".text\n.globl to_" #name "\n.type to_" #name ", %function\nto_" #name ":\n" JUMP(place) \
          ".symver to_" #name ", " #name "@@" VERSION "\n");
EACH(PASS)
