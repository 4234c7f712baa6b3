"""The sub-commands of ``ecg-agent``; each parses, calls one library function and prints."""
