/* SPDX-License-Identifier: Apache-2.0
 *
 * A client process that does to kvmemd what only another process can: raw_holder SOCKET.
 * Descriptor 3 is a socket of the test's, from which it takes one-letter orders, each answered
 * with the same letter ('!' when it failed):
 *
 *   j  join and be granted 64 blocks of the space "held"     c  close the connection, live on
 *   p  pass the connected socket to the test                 x  exit
 *   t  ask for its timeline; lane 3 has reached 7            g  say goodbye
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/timeline.h"
#include "support/raw_client.h"
#include "support/spawn.h"

static struct kvt_raw client = {.fd = -1, .status_fd = -1};
static struct kvt_raw_message grant;

static int join(const char *socket_path)
{
    uint32_t space;

    return kvt_raw_join(&client, socket_path, "holder") &&
           kvt_raw_space_open(&client, "held", &space) &&
           kvt_raw_blocks(&client, space, 64, &grant);
}

static int pass(void)
{
    struct kvt_raw to_test = {.fd = KVT_GIFT_FD, .status_fd = -1};

    return kvt_raw_send_bytes(&to_test, "p", 1, &client.fd, 1) == 0;
}

static int reach(void)
{
    struct kvi_lane *lanes = kvt_raw_timeline(&client, UINT32_MAX, &grant);

    if (lanes != NULL)
        kvi_lane_reach(&lanes[3], 7);
    return lanes != NULL;
}

int main(int argc, char *argv[])
{
    char order;
    char answer;

    if (argc != 2)
        return 2;
    while (recv(KVT_GIFT_FD, &order, 1, 0) == 1 && order != 'x') {
        answer = order;
        if (order == 'j' && !join(argv[1]))
            answer = '!';
        if ((order == 't' && !reach()) || (order == 'g' && !kvt_raw_goodbye(&client)))
            answer = '!';
        if (order == 'c')
            kvt_raw_close(&client);
        if (order == 'p' && pass())
            continue;
        if (send(KVT_GIFT_FD, &answer, 1, MSG_NOSIGNAL) != 1)
            return 1;
    }
    return 0;
}
