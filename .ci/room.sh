#!/bin/sh
# Sees to it that there is room on this disk for the suites. The labs' hosts offer
# tenants what is free here: with less than two machines' disks and what the suites
# write meanwhile, tests fail with "no node has room". Of what takes room,
# Go's cache of builds is the greatest (tens of GiB after a day of builds), and
# comes again by itself: when room is short, what was not used for some hours goes.
set -eu

want=35 # GiB, of which half is for the suites' writing
need=26

room() { df -BG --output=avail . | tail -n 1 | tr -dc 0-9; }

cache=$(go env GOCACHE)
for minutes in 1440 360 120; do # go renews the time of what it uses once an hour
	[ "$(room)" -lt $want ] || break
	echo "room: $(room) GiB free: Go's cache forgets what was not used for $((minutes / 60)) hours" >&2
	find "$cache" -type f -mmin +$minutes -delete 2>/dev/null || true
done
[ "$(room)" -ge $need ] || {
	echo "room: $(room) GiB free in $PWD, but the suites need $need: their hosts offer tenants what is free here; make room first" >&2
	exit 1
}
