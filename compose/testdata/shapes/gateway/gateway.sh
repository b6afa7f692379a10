read method path version
while read header && test ${#header} -gt 1; do :; done
printf 'HTTP/1.0 200 OK\r\n\r\n'
case $path in
/users/*) get users 8000 / ;;
/orders/*) get api 8000 / ;;
esac
