"""What is known about bytes on their way: how fast they may go, and how many went."""
