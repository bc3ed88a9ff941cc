"""The rollups: for each hour, day and series what its readings amount to."""
