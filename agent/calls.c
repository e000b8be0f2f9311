/* The system calls by which a command changes names, opens for writing or runs a program: their numbers, and where each finds its paths.
 * Data only, the one place for it; filter.c makes the filter from it, trace.c reads the arguments by it. */
#include "agent/calls.h"

#define CWD (-1)
#define NO (-1)

const struct call calls[] = {
    /* x86_64 i386 aarch64 */
    {{2, 5, NO}, WATCH_WRITERS, 1, {{CWD, 0, EFFECT_OPEN}}},                                                /* open */
    {{257, 295, 56}, WATCH_WRITERS, 2, {{0, 1, EFFECT_OPEN}}},                                              /* openat */
    {{437, 437, 437}, WATCH, 2, {{0, 1, EFFECT_OPEN_HOW}}},                                                 /* openat2 */
    {{85, 8, NO}, WATCH, NO, {{CWD, 0, EFFECT_CREATE}}},                                                    /* creat */
    {{82, 38, NO}, WATCH, NO, {{CWD, 0, EFFECT_LEAVE}, {CWD, 1, EFFECT_PLACE}}},                            /* rename */
    {{264, 302, 38}, WATCH, NO, {{0, 1, EFFECT_LEAVE}, {2, 3, EFFECT_PLACE}}},                              /* renameat */
    {{316, 353, 276}, WATCH, 4, {{0, 1, EFFECT_LEAVE}, {2, 3, EFFECT_PLACE}}},                              /* renameat2 */
    {{86, 9, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}, {CWD, 1, EFFECT_MAKE}}},                              /* link */
    {{265, 303, 37}, WATCH, NO, {{0, 1, EFFECT_TOUCH}, {2, 3, EFFECT_MAKE}}},                               /* linkat */
    {{88, 83, NO}, WATCH, NO, {{CWD, 1, EFFECT_MAKE}}},                                                     /* symlink */
    {{266, 304, 36}, WATCH, NO, {{1, 2, EFFECT_MAKE}}},                                                     /* symlinkat */
    {{87, 10, NO}, WATCH, NO, {{CWD, 0, EFFECT_REMOVE}}},                                                   /* unlink */
    {{263, 301, 35}, WATCH, NO, {{0, 1, EFFECT_REMOVE}}},                                                   /* unlinkat */
    {{84, 40, NO}, WATCH, NO, {{CWD, 0, EFFECT_REMOVE}}},                                                   /* rmdir */
    {{83, 39, NO}, WATCH, NO, {{CWD, 0, EFFECT_MAKE}}},                                                     /* mkdir */
    {{258, 296, 34}, WATCH, NO, {{0, 1, EFFECT_MAKE}}},                                                     /* mkdirat */
    {{133, 14, NO}, WATCH, NO, {{CWD, 0, EFFECT_MAKE}}},                                                    /* mknod */
    {{259, 297, 33}, WATCH, NO, {{0, 1, EFFECT_MAKE}}},                                                     /* mknodat */
    {{49, 361, 200}, WATCH, NO, {{NO, 1, EFFECT_BIND}}},                                                    /* bind */
    {{76, 92, 45}, WATCH, NO, {{CWD, 0, EFFECT_CUT}}},                                                      /* truncate */
    {{NO, 193, NO}, WATCH, NO, {{CWD, 0, EFFECT_CUT}}},                                                     /* truncate64 */
    {{90, 15, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                    /* chmod */
    {{91, 94, 52}, WATCH, NO, {{0, NO, EFFECT_TOUCH}}},                                                     /* fchmod */
    {{268, 306, 53}, WATCH, NO, {{0, 1, EFFECT_TOUCH}}},                                                    /* fchmodat */
    {{452, 452, 452}, WATCH, 3, {{0, 1, EFFECT_TOUCH}}},                                                    /* fchmodat2 */
    {{92, 182, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                   /* chown */
    {{NO, 212, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                   /* chown32 */
    {{94, 16, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH_LINK}}},                                               /* lchown */
    {{NO, 198, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH_LINK}}},                                              /* lchown32 */
    {{93, 95, 55}, WATCH, NO, {{0, NO, EFFECT_TOUCH}}},                                                     /* fchown */
    {{NO, 207, NO}, WATCH, NO, {{0, NO, EFFECT_TOUCH}}},                                                    /* fchown32 */
    {{260, 298, 54}, WATCH, 4, {{0, 1, EFFECT_TOUCH}}},                                                     /* fchownat */
    {{132, 30, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                   /* utime */
    {{235, 271, NO}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                  /* utimes */
    {{261, 299, NO}, WATCH, NO, {{0, 1, EFFECT_TOUCH}}},                                                    /* futimesat */
    {{280, 320, 88}, WATCH, 3, {{0, 1, EFFECT_TOUCH}}},                                                     /* utimensat */
    {{NO, 412, NO}, WATCH, 3, {{0, 1, EFFECT_TOUCH}}},                                                      /* utimensat_time64 */
    {{188, 226, 5}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                   /* setxattr */
    {{189, 227, 6}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH_LINK}}},                                              /* lsetxattr */
    {{190, 228, 7}, WATCH, NO, {{0, NO, EFFECT_TOUCH}}},                                                    /* fsetxattr */
    {{463, 463, 463}, WATCH, 2, {{0, 1, EFFECT_TOUCH}}},                                                    /* setxattrat */
    {{197, 235, 14}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH}}},                                                  /* removexattr */
    {{198, 236, 15}, WATCH, NO, {{CWD, 0, EFFECT_TOUCH_LINK}}},                                             /* lremovexattr */
    {{199, 237, 16}, WATCH, NO, {{0, NO, EFFECT_TOUCH}}},                                                   /* fremovexattr */
    {{466, 466, 466}, WATCH, 2, {{0, 1, EFFECT_TOUCH}}},                                                    /* removexattrat */
    {{469, 469, 469}, WATCH, 4, {{0, 1, EFFECT_TOUCH}}},                                                    /* file_setattr */
    {{304, 342, 265}, WATCH, NO, {{NO, NO, EFFECT_HANDLE}}},                                                /* open_by_handle_at */
    {{59, 11, 221}, WATCH, NO, {{CWD, 0, EFFECT_RUN}}},                                                     /* execve */
    {{322, 358, 281}, WATCH, NO, {{0, 1, EFFECT_RUN}}},                                                     /* execveat */
    /* After these a path may name something else than it does here. */
    {{165, 21, 40}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                                /* mount */
    {{429, 429, 429}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                              /* move_mount */
    {{428, 428, 428}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                              /* open_tree */
    {{467, 467, 467}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                              /* open_tree_attr */
    {{432, 432, 432}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                              /* fsmount */
    {{155, 217, 41}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                               /* pivot_root */
    {{161, 61, 51}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                                /* chroot */
    {{308, 346, 268}, WATCH, NO, {{NO, NO, EFFECT_NEW_ROOT}}},                                              /* setns */
    {{42, 362, 203}, WATCH, NO, {{NO, 1, EFFECT_CONNECT}}},                                                 /* connect: to a container engine? */
    {{317, 354, 277}, WATCH_LISTENER, 1, {{NO, NO, EFFECT_LISTENER}}},                                      /* seccomp */
    {{425, 425, 425}, REFUSE, NO, {{NO, NO, EFFECT_NONE}}},                                                 /* io_uring_setup: its opens cannot be seen */
};

const size_t call_count = sizeof calls / sizeof *calls;
