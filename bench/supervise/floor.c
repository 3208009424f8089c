/* The floor: the least a supervisor can do. Starts N children with vfork, output to files, starts
 * again whoever ends, and on SIGTERM ends all. floor N DIRECTORY PROGRAM */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile sig_atomic_t stopping;
static void stop(int signal) { (void)signal; stopping = 1; }

static pid_t start(const char *directory, int number, char *program) {
  char path[512];
  char *arguments[] = {program, NULL};
  snprintf(path, sizeof path, "%s/%d.log", directory, number);
  int log = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  pid_t pid = vfork();
  if (pid == 0) {
    dup2(log, 1);
    dup2(log, 2);
    execv(program, arguments);
    _exit(127);
  }
  close(log);
  return pid;
}

int main(int count, char **words) {
  if (count != 4) return 2;
  int number = atoi(words[1]);
  pid_t *pids = calloc(number, sizeof *pids);
  struct sigaction action = {.sa_handler = stop};
  sigaction(SIGTERM, &action, NULL);
  for (int i = 0; i < number; i++) pids[i] = start(words[2], i, words[3]);
  while (!stopping) {
    pid_t gone = waitpid(-1, NULL, 0);
    for (int i = 0; gone > 0 && !stopping && i < number; i++)
      if (pids[i] == gone) pids[i] = start(words[2], i, words[3]);
  }
  for (int i = 0; i < number; i++) kill(pids[i], SIGTERM);
  while (waitpid(-1, NULL, 0) > 0) continue;
  return 0;
}
