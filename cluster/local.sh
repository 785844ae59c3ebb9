#!/bin/bash
# Start a Slurm with two nodes, both of them this machine, to try the scripts without a cluster.
# Run it as root; on Debian: apt-get install slurm-wlm munge.
#
#     cluster/local.sh start DIR     keeps its files in DIR; then: export SLURM_CONF=DIR/slurm.conf
#     cluster/local.sh stop DIR
#
set -euo pipefail
what=$1 here=$(realpath -m "$2") host=$(hostname)
export SLURM_CONF=$here/slurm.conf

if [[ $what == stop ]]; then
  scontrol shutdown
  exit
fi
mkdir -p "$here"/{state,spool-m1,spool-m2}
cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool-%n
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd-%n.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdParameters=config_overrides
NodeName=m[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[26821-26822] CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
grep -q ' m1 m2$' /etc/hosts || echo '127.0.0.1 m1 m2' >>/etc/hosts # nodes find each other by name
mkdir -p /run/munge && chown munge: /run/munge
munge -n >/dev/null 2>&1 || runuser -u munge -- munged
slurmctld
slurmd -N m1
slurmd -N m2
sleep 3
sinfo
