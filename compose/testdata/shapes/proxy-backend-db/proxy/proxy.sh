exec nc -ll -p 80 -e nc backend 8000
