/* A supervised child: says once when main() began, then prints a line a second.
 * The record goes to the file in BENCH_EVENTS: pid and CLOCK_MONOTONIC nanoseconds. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(void) {
  struct timespec now, second = {1, 0};
  char record[64];
  clock_gettime(CLOCK_MONOTONIC, &now);
  int events = open(getenv("BENCH_EVENTS"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
  int length = snprintf(record, sizeof record, "%d %lld\n", getpid(),
                        (long long)now.tv_sec * 1000000000LL + now.tv_nsec);
  if (events < 0 || write(events, record, length) != length) return 1;
  close(events);
  for (unsigned line = 0;; line++) {
    length = snprintf(record, sizeof record, "line %u of a child that is alive\n", line);
    if (write(1, record, length) != length) return 1;
    nanosleep(&second, NULL);
  }
}
