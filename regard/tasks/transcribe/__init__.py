"""Transcription: recorded speech in, its words out."""
