#!/usr/bin/env bash
# A throw-away Slurm on this machine, for tests: munged, slurmctld and 4 slurmd, all on loopback.
#
#   slurm.sh start ROOT PORT PID    ready when it returns; gone once process PID is, as by `stop`
#   slurm.sh stop ROOT              ends it, and removes ROOT
#   slurm.sh install                Debian's packages, where they are missing
#
# Nodes n1 to n4 have 2 pretend CPUs each. Partition `main` is preempted by `urgent` (its jobs are
# requeued, 20 s after a warning). Slurm listens on PORT to PORT+4. Clients need SLURM_CONF=ROOT/slurm.conf.
# Needs root. There is no accounting: sacct does not answer.
set -euo pipefail
NODES=4
CPUS=2
PACKAGES=(slurmctld slurmd slurm-client munge)

living() { grep -q '^State:[[:space:]]*[^ZX[:space:]]' "/proc/$1/status" 2>/dev/null; }  # no zombie
until_ok() {  # SECONDS COMMAND...
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || { echo "slurm.sh: still failing: $*" >&2; return 1; }
    sleep 0.1
  done
}

install() {
  if command -v slurmctld slurmd sbatch munged >/dev/null; then return; fi
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  # At this runlevel the packages start no services of their own.
  RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "${PACKAGES[@]}" >/dev/null
}

configure() {  # PORT
  mkdir -p "$ROOT"/{munge,state,log}
  chmod 755 "$ROOT"
  chmod 711 "$ROOT/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$ROOT/munge/key")
  local host name
  host=$(hostname -s)
  # The processes of a job find each other by the names of their nodes.
  for name in "$host" $(seq -f 'n%g' "$NODES"); do
    getent hosts "$name" >/dev/null || echo "127.0.0.1 $name" >>/etc/hosts
  done
  cat >"$ROOT/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$1
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# cred_expire is also how long a requeued job waits before it starts again.
AuthInfo=socket=$ROOT/munge/socket,cred_expire=5
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation=$ROOT/state
SlurmdSpoolDir=$ROOT/spool.%n
SlurmctldPidFile=$ROOT/slurmctld.pid
SlurmdPidFile=$ROOT/slurmd.%n.pid
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd.%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,bf_interval=1,sched_interval=1,sched_min_interval=100000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
MinJobAge=3600
MaxArraySize=1001
NodeName=n[1-$NODES] NodeHostname=$host NodeAddr=127.0.0.1 Port=[$(($1 + 1))-$(($1 + NODES))] CPUs=$CPUS RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
}

all_idle() { [ "$(sinfo -h -N -p main -o %t | grep -c '^idle$')" = "$NODES" ]; }

start() {  # PORT PID
  configure "$1"
  export SLURM_CONF=$ROOT/slurm.conf
  munged --force --num-threads=2 --key-file="$ROOT/munge/key" --socket="$ROOT/munge/socket" \
    --pid-file="$ROOT/munged.pid" --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/munge/seed"
  until_ok 10 munge -S "$ROOT/munge/socket" -n
  (cd "$ROOT/state" && slurmctld -f "$SLURM_CONF" >/dev/null 2>&1)
  for i in $(seq "$NODES"); do
    mkdir -p "$ROOT/spool.n$i"
    slurmd -f "$SLURM_CONF" -N "n$i"
  done
  until_ok 60 all_idle || { tail -n 5 "$ROOT"/log/*.log >&2; return 1; }
  setsid bash "$0" watch "$ROOT" "$2" </dev/null >/dev/null 2>&1 &
}

stop() {
  export SLURM_CONF=$ROOT/slurm.conf
  [ -d "$ROOT" ] || return 0
  for _ in $(seq 60); do
    [ -n "$(timeout 10 squeue -h 2>/dev/null)" ] || break
    timeout 10 scancel -u root 2>/dev/null || true  # again: a job may be started again just now
    sleep 0.25
  done
  local file pid
  # Each daemon by the number that it wrote itself.
  for file in "$ROOT"/slurmd.*.pid "$ROOT/slurmctld.pid" "$ROOT/munged.pid"; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    for _ in $(seq 100); do living "$pid" && sleep 0.1; done
    if living "$pid"; then kill -9 "$pid"; fi
  done
  rm -rf "$ROOT"
}

ROOT=${2:-}
case ${1:-} in
  install) install ;;
  start) start "$3" "$4" ;;
  stop) stop ;;
  watch)
    while living "$3" && [ -d "$ROOT" ]; do sleep 1; done
    stop
    ;;
  *) sed -n '2,10s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
