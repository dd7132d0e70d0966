#!/bin/sh
# Inside a machine that virtme-ng boots from the kernel tree in the current directory. The guest has this machine's files, so that
# pagetrace check itself runs there; --rwdir makes one directory writable, for what comes back.
set -eu
mkdir -p kept
vng --run . --rwdir kept --exec "pagetrace check --strict --junit kept/pagetrace.xml --json kept/pagetrace.json -- ./my-test"
