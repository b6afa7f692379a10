#!/bin/sh
test -e /healthchecks/store.sh
