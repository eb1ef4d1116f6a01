"""What a volume does under the load of a database, measured with fio."""
