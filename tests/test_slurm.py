"""The same workflow through a real one-node Slurm with two pretended GPUs.

Needs Debian's slurmctld, slurmd, slurm-client and munge, and root:
``pytest -m system tests/test_slurm.py``.
"""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

from tests.test_snakemake import SNAKEMAKE, copy, finished, write_grid  # noqa: F401 - a fixture

pytestmark = pytest.mark.system
ETC = Path("/etc/slurm")  # jobs look for it there and nowhere else
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""
GPUS = "NodeName={host} Name=gpu File=/dev/null\nNodeName={host} Name=gpu File=/dev/zero\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(missing) or 'nothing else'} on PATH")
    folder = tmp_path_factory.mktemp("slurm")
    host = socket.gethostname().split(".")[0]
    (folder / "state").mkdir()
    (folder / "spool").mkdir()
    if (ETC / "slurm.conf").exists():
        pytest.skip("this machine belongs to a Slurm cluster already")
    ETC.mkdir(exist_ok=True)
    (ETC / "slurm.conf").write_text(CONFIGURATION.format(host=host, folder=folder))
    (ETC / "gres.conf").write_text(GPUS.format(host=host))
    environment = dict(os.environ)
    os.makedirs("/run/munge", exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged", "--force"], check=True)
    daemons = [
        subprocess.Popen([name, "-D"], env=environment, stderr=subprocess.DEVNULL)
        for name in ("slurmctld", "slurmd")
    ]
    try:
        _wait_for_node(environment)
        yield environment
    finally:
        for daemon in daemons:
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=20)
        subprocess.run(["pkill", "munged"], check=False)
        for name in ("slurm.conf", "gres.conf"):
            (ETC / name).unlink()


def _wait_for_node(environment):
    for _ in range(60):
        command = ["sinfo", "-h", "-o", "%t %G"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.stdout.startswith("idle"):
            assert "gpu:2" in done.stdout
            return
        time.sleep(1)
    pytest.fail(f"the node did not come up: {done.stdout} {done.stderr}")


def test_the_same_workflow_runs_on_slurm_with_a_gpu_a_job(cluster, copy):  # noqa: F811
    write_grid(copy, "slurm", gpus=1)
    command = [str(SNAKEMAKE), "--snakefile", "workflow/Snakefile"]
    command += ["--profile", "workflow/profiles/slurm", "--config", "profile=slurm"]
    command += ["--default-resources", "slurm_partition=main", "slurm_account=none", "mem_mb=500"]
    environment = cluster | {"PYTHONPATH": str(copy)}
    done = subprocess.run(
        command, cwd=copy, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(finished(copy, "slurm")) == 4
    seen = (copy / "slurm/gpus.txt").read_text().split()
    assert len(seen) == 4
    assert set(seen) <= {"0", "1"}
