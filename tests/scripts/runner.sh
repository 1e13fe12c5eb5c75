#!/bin/bash
# The test runner reports what it must: programs that fail, crash, hang, leak, leave a process
# behind or have no test are failures; a skip is a skip; a run of nothing is not a success.
set -u
cd "$(dirname "$0")/../.." || exit 1

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

# program NAME FLAGS < SOURCE
program() {
    ${CC:-gcc} -g -xc - -o "$work/$1" $2 $(pkg-config --libs criterion) || failed=1
}

# expect LAST_LINE STATUS KIND:NAME...: the runner's verdict on these programs.
expect() {
    local line=$1 status=$2
    shift 2
    local tests=("${@/:/:$work/}")
    local output
    output=$(python3 tests/support/run.py --logs "$work/logs" --limit 3 "${tests[@]}" 2> /dev/null)
    if [ $? != "$status" ] || [ "$(tail -n 1 <<< "$output")" != "$line" ]; then
        printf 'for %s, expected "%s", not:\n%s\n' "$*" "$line" "$output"
        failed=1
    fi
}

criterion='#include <criterion/criterion.h>
#include <stdlib.h>
#include <unistd.h>
'
program good "" <<< "$criterion Test(s, a) {} Test(s, b) {} Test(s, c) { cr_skip_test(\"why\"); }"
program bad "" <<< "$criterion Test(s, a) {} Test(s, b) { cr_assert(0); }"
program crash "" <<< "$criterion Test(s, a) {} Test(s, b) { abort(); }"
program hang "" <<< "$criterion Test(s, a) { for (;;) pause(); }"
program none "" <<< "$criterion"
program leak -fsanitize=address <<< "$criterion void *volatile p;
    Test(s, a) { p = malloc(10); p = NULL; }"
program undefined "-fsanitize=undefined" <<< "$criterion volatile int i = 40, r;
    Test(s, a) { r = 1 << i; }"
program stray "" <<< "$criterion
    int main(void) { if (fork() == 0) for (;;) pause(); return 0; }"
program killed "" <<< "$criterion int main(void) { abort(); }"
printf '#!/bin/sh\nexit 3\n' > "$work/status"
printf '#!/bin/sh\necho no device\nexit 77\n' > "$work/skip"
chmod +x "$work/status" "$work/skip"

expect "2 passed, 0 failed, 1 skipped" 0 criterion:good
expect "1 passed, 1 failed, 0 skipped" 1 criterion:bad
expect "1 passed, 1 failed, 0 skipped" 1 criterion:crash
expect "0 passed, 1 failed, 0 skipped" 1 criterion:hang
expect "0 passed, 1 failed, 0 skipped" 1 criterion:none
expect "0 passed, 1 failed, 0 skipped" 1 plain:hang
expect "0 passed, 1 failed, 0 skipped" 1 plain:stray
expect "0 passed, 1 failed, 0 skipped" 1 plain:killed
expect "0 passed, 1 failed, 0 skipped" 1 plain:status
expect "2 passed, 0 failed, 2 skipped" 0 criterion:good plain:skip
expect "0 passed, 0 failed, 1 skipped" 1 plain:skip
expect "1 passed, 0 failed, 1 skipped" 0 plain:good absent:other
expect "0 passed, 0 failed, 0 skipped" 1
expect "1 passed, 1 failed, 0 skipped" 1 criterion:leak
expect "1 passed, 1 failed, 0 skipped" 1 criterion:undefined
exit $failed
