"""Looking at rows as a set: statistics, a map of what they are about, coverage of the test rows, loss by region."""
