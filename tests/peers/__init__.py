"""Peers that tests play by hand; they can send what gnar never sends."""
