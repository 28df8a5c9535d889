# What a step sees of its surroundings: a line "name: value" for each thing. It runs in a step.
say() { printf '%s: %s\n' "$1" "$(printf '%s' "$2" | tr '\n' ' ')"; }
stat() { sed 's/.*) //' "/proc/$1/stat" | cut -d' ' -f"$2"; } # fields behind the command's name

say pid $$
say parent "$(stat $$ 2)"
say process-group "$([ "$(stat $$ 3)" = $$ ] && echo leads one of its own || echo "$(stat $$ 3)")"
say session "$(stat $$ 4)"
say terminal "$(stat $$ 5) $(for fd in 0 1 2; do [ -t $fd ] && echo "$fd is one"; done)"
say process-1 "$(tr '\0' ' ' </proc/1/cmdline | cut -d' ' -f1)"
say processes "$(for p in /proc/[0-9]*; do sed 's/.*(\(.*\)).*/\1/' "$p/stat" 2>/dev/null; done | sort | uniq | grep -vE '^(sed|sort|uniq|grep|sh|tr)$')"
for field in Uid Gid Groups NoNewPrivs Seccomp SigBlk SigIgn SigCgt CapInh CapPrm CapEff CapBnd CapAmb; do
  say "$field" "$(sed -n "s/^$field:[[:space:]]*//p" /proc/$$/status)"
done
say umask "$(umask)"
say nice "$(stat $$ 17)"
say limits "$(sed 1d /proc/$$/limits | sed 's/  */ /g')"
say oom-score-adj "$(cat /proc/$$/oom_score_adj)"
say stdin "$(readlink /proc/$$/fd/0)"
say stdout "$(readlink /proc/$$/fd/1 | sed 's/\[.*//')"
say stderr "$(readlink /proc/$$/fd/2 | sed 's/\[.*//')"
say stdout-flags "$(sed -n 's/^flags:[[:space:]]*//p' /proc/$$/fdinfo/1)"
open=
for fd in /proc/$$/fd/*; do [ ! -e "$fd" ] || open="$open ${fd##*/}"; done
say open-files "$open"
say working-folder "$(pwd)"
say environment "$(env | sed 's/=.*//' | grep -vE '^(_|SHLVL)$' | sort)"
say home "$HOME"
say mounts "$(cut -d' ' -f2,3 /proc/mounts | sort | uniq)"
say root "$(ls -A /)"
say scripts "$(ls -ln /tekton/scripts | sed 1d | awk '{print $1, $3, $4}')"
say cgroup "$(sed 's,.*/,,' /proc/self/cgroup | sed 's/[0-9a-f]\{64\}/ID/' | sort | uniq)"
say host-name "$([ "$(hostname)" = "$POD" ] && echo the pod\'s || hostname)"
say interfaces "$(ls /sys/class/net)"
say name-servers "$(cat /etc/resolv.conf | sed 's/e2e-[a-z]*/NAMESPACE/')"
say kernel-settings "$(cat /proc/sys/kernel/shmmax /proc/sys/net/core/somaxconn)"
