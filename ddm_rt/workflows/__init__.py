"""What each command does, as one Python call. Rooms that a command line and a program share."""
