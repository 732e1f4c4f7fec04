/* Preloaded into a process and its children: no name is looked up and nothing is sent, and who tried is written to
   $NETWORK_LOG. A native library's own requests do not pass through Python's socket module. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *name) {
    int file = open(getenv("NETWORK_LOG"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    dprintf(file, "%s %s\n", what, name ? name : "");
    close(file);
}

static int abroad(const struct sockaddr *to) {
    return to && (to->sa_family == AF_INET || to->sa_family == AF_INET6);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    note("getaddrinfo", name);
    return EAI_FAIL;
}

struct hostent *gethostbyname(const char *name) {
    note("gethostbyname", name);
    return NULL;
}

int connect(int socket, const struct sockaddr *to, socklen_t size) {
    if (!abroad(to)) {
        int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
        return real(socket, to, size);
    }
    note("connect", "");
    errno = ENETUNREACH;
    return -1;
}

ssize_t sendto(int socket, const void *data, size_t length, int flags, const struct sockaddr *to, socklen_t size) {
    if (!abroad(to)) {
        ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) =
            dlsym(RTLD_NEXT, "sendto");
        return real(socket, data, length, flags, to, size);
    }
    note("sendto", "");
    errno = ENETUNREACH;
    return -1;
}
