"""Where runs execute: in this process, in others of this machine, or as jobs of Slurm."""
