"""What a user may write, how it is read, checked and completed. No torch below this line."""
