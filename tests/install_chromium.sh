#!/bin/sh
# The browser tests use a Chromium or Chrome that is there; root on a Debian gets it from the packages. With neither
# they are skipped and say so.
for name in chromium chromium-browser google-chrome google-chrome-stable; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null
    exit $?
fi
echo "no Chromium here: the browser tests will be skipped; install the package chromium to enable them" >&2
