/* Bionic keeps the stack's guard 0x28 bytes behind the thread pointer, where glibc has the variables of the first
 * library that has some for each thread: this one is that library, where it is preloaded. */
__attribute__((tls_model("initial-exec"), used)) __thread char bionic_pad[256] = {1};

char *bionic_touch_pad(void) { return bionic_pad; }
