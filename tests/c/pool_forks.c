/* pool_forks TRIALS: in each trial a fresh process makes its first call of the pool in one thread
 * and forks in another, some time after the call began. The child's own call must end. */
#include "pool.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <pthread.h>

#define HUNG 7

static atomic_int has_begun;

static void meet(void *context, pool_team *team, int worker, int n_workers) {
    (void)context, (void)n_workers;
    team_barrier(team, worker);
}

static void *call(void *argument) {
    has_begun = 1;
    pool_run(meet, NULL, 3);
    return argument;
}

static int trial(int number) {
    pthread_t caller;
    if (pthread_create(&caller, NULL, call, NULL))
        return 1;
    while (!has_begun) {
    }
    for (volatile int i = 0; i < number * 37 % 3000; i++) {
    }
    pid_t child = fork();
    if (child == 0) {
        alarm(10);
        pool_run(meet, NULL, 3);
        _exit(0);
    }
    int status;
    waitpid(child, &status, 0);
    pthread_join(caller, NULL);
    return WIFSIGNALED(status) ? HUNG : WEXITSTATUS(status);
}

int main(int n_arguments, char **arguments) {
    int n_trials = n_arguments > 1 ? atoi(arguments[1]) : 100, n_hung = 0;
    for (int i = 0; i < n_trials; i++) {
        pid_t process = fork();
        if (process == 0)
            _exit(trial(i));
        int status;
        waitpid(process, &status, 0);
        if (!WIFEXITED(status) || (WEXITSTATUS(status) && WEXITSTATUS(status) != HUNG))
            return 1;
        n_hung += WEXITSTATUS(status) == HUNG;
        if (n_hung == 3) {
            n_trials = i + 1;
            break;
        }
    }
    printf("%d of %d children hung\n", n_hung, n_trials);
    return 0;
}
