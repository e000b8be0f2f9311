/* A submitter of libzmq's own C library with CURVE: asks for the status and prints the answer's JSON. ADDRESS SERVER PUBLIC SECRET, keys
 * in hexadecimal, from the environment (keys never stand in arguments). */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

static void set_key(void *socket, int option, const char *name)
{
    unsigned char key[32];
    const char *hex = getenv(name);
    for (int i = 0; hex && i < 32; i++)
        sscanf(hex + 2 * i, "%2hhx", &key[i]);
    if (!hex || zmq_setsockopt(socket, option, key, sizeof key) != 0)
        exit(3);
}

int main(int argc, char **argv)
{
    static const char query[] = "what=status\0id=7";
    char answer[65536];
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    int patience = 5000, none = 0;
    set_key(socket, ZMQ_CURVE_SERVERKEY, "SERVER");
    set_key(socket, ZMQ_CURVE_PUBLICKEY, "PUBLIC");
    set_key(socket, ZMQ_CURVE_SECRETKEY, "SECRET");
    zmq_setsockopt(socket, ZMQ_RCVTIMEO, &patience, sizeof patience);
    zmq_setsockopt(socket, ZMQ_LINGER, &none, sizeof none);
    if (argc != 2 || zmq_connect(socket, argv[1]) != 0)
        return 2;
    zmq_send(socket, "QUERY", 5, ZMQ_SNDMORE);
    zmq_send(socket, query, sizeof query, 0);
    int length = 0;
    for (int part = 0; part < 3; part++) {
        length = zmq_recv(socket, answer, sizeof answer - 1, 0);
        if (length < 0)
            return 1;
    }
    answer[length] = 0;
    puts(answer);
    zmq_close(socket);
    zmq_ctx_term(context);
    return 0;
}
