"""What the commands do; soundstage.cli says how they are called."""
