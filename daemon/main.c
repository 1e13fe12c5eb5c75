/* SPDX-License-Identifier: Apache-2.0
 *
 * kvmemd: options, signals, and one server until the end. Signals are blocked here, before any
 * other thread is there (devices' workers, a driver's own), so that they reach the server through
 * its signalfd and nothing else.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <kvmem/error.h>

#include "log.h"
#include "options.h"
#include "server.h"
#include "wire/protocol.h"

#define EXIT_FAILED     1
#define EXIT_BAD_OPTION 2

/* A descriptor 2 that was closed would go to a socket, and the log to a client. */
static int standard_fds_open(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    while (fd >= 0 && fd <= STDERR_FILENO);
    return fd < 0 ? -1 : close(fd);
}

static void signals_set(sigset_t *ending)
{
    sigemptyset(ending);
    sigaddset(ending, SIGTERM);
    sigaddset(ending, SIGINT);
    sigprocmask(SIG_BLOCK, ending, NULL);
    signal(SIGPIPE, SIG_IGN); /* a client that is gone is an error code */
    signal(SIGHUP, SIG_IGN);  /* a terminal that is gone is nothing to us */
}

static int serve(const struct kvd_options *options)
{
    struct kvd_server *server = NULL;
    sigset_t ending;
    bool all_ended;
    int status;
    int rc;

    signals_set(&ending);
    umask(077);
    rc = kvd_server_create(options, &ending, &server);
    if (rc == 0)
        rc = kvd_server_run(server);
    if (rc < 0)
        kvd_log_always("%s", kvmem_error_detail()->text);
    all_ended = kvd_server_destroy(server);
    if (rc == 0)
        kvd_log_always("ended");
    status = rc < 0 ? EXIT_FAILED : 0;
    if (!all_ended)
        _exit(status); /* the driver's exit handlers would wait for the call that hangs */
    return status;
}

int main(int argc, char *argv[])
{
    struct kvd_options options;

    if (standard_fds_open() < 0)
        return EXIT_FAILED;
    switch (kvd_options_parse(argc, argv, &options)) {
    case KVD_OPTIONS_HELP: fputs(kvd_options_help(), stdout); return 0;
    case KVD_OPTIONS_VERSION:
        printf("kvmemd %d.%d.%d, protocol %u\n", KVMEM_VERSION_MAJOR, KVMEM_VERSION_MINOR,
               KVMEM_VERSION_PATCH, KVI_PROTOCOL_VERSION);
        return 0;
    case KVD_OPTIONS_BAD: kvd_log_always("%s", kvmem_error_detail()->text); return EXIT_BAD_OPTION;
    case KVD_OPTIONS_RUN: break;
    }
    return serve(&options);
}
