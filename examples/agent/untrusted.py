# Asks the API, and then tries to reach what it should not.
import os, sys, urllib.request

def get(url):
    try:
        return urllib.request.urlopen(url, timeout=10).read().decode()
    except OSError as e:
        return f"no: {e}"

api = sys.argv[1]
print("the API:", get(api + "/Lisbon"))
print("what it was sent:", get(api + "/debug"))
for what, url in {
    "by its name": f"http://{os.urandom(4).hex()}.evil.test/secret",
    "the cloud's metadata": "http://169.254.169.254/latest/meta-data/",
    "the machine": "http://127.0.0.1/",
    "an address": "http://198.51.100.1/",
}.items():
    print(what + ":", get(url))
