"""Tests of the repository itself: its rules, documents and deployment."""
