"""Write-ahead log, memtable and base store behind one face."""
